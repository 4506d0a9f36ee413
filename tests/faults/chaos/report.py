"""What a run came to, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.faults.chaos.history import History
from tests.faults.chaos.invariants import (
    ENOUGH,
    INVARIANTS,
    beside_storms,
    counted,
    next_at,
    percentile,
    waits_for_a_person,
)

#: What is shown of the contradictions of one invariant.
SHOWN = 8
_BROKER = "broker"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosReport:
    """One run; `violations` are empty for a system that has no ledger to be asked."""

    system: str
    seed: int
    seconds: float
    look_up: bool
    history: History
    violations: Mapping[str, list[str]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    ended_by_itself: Mapping[str, int] = field(default_factory=dict)
    settled_after_seconds: float = 0.0
    unsettled: int = 0

    @property
    def holds(self) -> bool:
        """Whether no invariant is contradicted."""
        return not any(self.violations.values())

    @property
    def wanted(self) -> set[tuple[str, str]]:
        """What was promised by accepting: provider and title."""
        return {wanted for event in self.history.accepted for wanted in self.history.expected[event]}

    @property
    def lost(self) -> set[tuple[str, str]]:
        """What was promised, did not happen, and is neither shown as undecided or refused nor waits for its moment."""
        happened = set(counted(self.history))
        shown = {
            (one.provider, one.title)
            for one in self.history.touches
            if one.state in {"unknown", "dead"} or next_at(one) > self.history.ended_at
        }
        return self.wanted - happened - shown

    @property
    def doubled(self) -> dict[tuple[str, str], int]:
        """What happened more than once without being asked for by `if_unsure: repeat`."""
        return {key: times for key, times in counted(self.history).items() if times > 1 and not _may_repeat(key)}

    @property
    def posted_once(self) -> set[str]:
        """The events that the sender never repeated."""
        times = Counter(post.event for post in self.history.posts)
        return {event for event, number in times.items() if number == 1}

    def numbers(self) -> dict[str, float | int]:
        """Return the counts of the run."""
        history = self.history
        happened = counted(history)
        states = Counter(touch.state for touch in history.touches)
        quiet, broken = self._ingest()
        return {
            "events accepted": len(history.accepted),
            "requests not accepted": sum(not post.accepted for post in history.posts),
            "tasks promised": len(self.wanted),
            "tasks delivered": len(self.wanted & set(happened)),
            "lost": len(self.lost),
            "doubled": len(self.doubled),
            "doubled, posted once": sum(key[1].split(" ", 1)[1] in self.posted_once for key in self.doubled),
            "repeated as asked": sum(times - 1 for key, times in happened.items() if _may_repeat(key)),
            "unknown, wait for a person": sum(waits_for_a_person(touch) for touch in history.touches),
            "unknown, still looked up": states["unknown"] - sum(waits_for_a_person(touch) for touch in history.touches),
            "dead": states["dead"],
            "still open": self.unsettled,
            "faults injected": len(history.disturbed),
            "settled after (s)": round(self.settled_after_seconds, 1),
            "last effect after (s)": round(self._last_effect_seconds(), 1),
            "ingest p50 / p99, quiet (ms)": _pair(quiet),
            "ingest p50 / p99, broker away (ms)": _pair(broken),
        }

    def text(self) -> str:
        """Return it for people."""
        look_up = "works" if self.look_up else "is broken"
        lines = [f"{self.system}: seed {self.seed}, {self.seconds:g} s of faults, the providers' look-up {look_up}", ""]
        lines += [f"  {name:<38} {value}" for name, value in self.numbers().items()]
        lines += ["", "  faults"]
        kinds = Counter(span.kind for span in self.history.disturbed)
        lines += [f"    {kind:<36} {number}" for kind, number in sorted(kinds.items())]
        lines += [f"    left out: {why:<26} {number}" for why, number in sorted(self.left_out.items())]
        lines += [f"    ended by itself: {name:<19} {number}" for name, number in sorted(self.ended_by_itself.items())]
        if self.violations:
            lines += ["", "  invariants"]
        for invariant in INVARIANTS if self.violations else ():
            found = self.violations[invariant.name]
            verdict = f"VIOLATED {len(found)} times" if found else self._held(invariant.name)
            lines.append(f"    {invariant.name} {invariant.sentence}: {verdict}")
            lines += [f"       {line}" for line in found[:SHOWN]]
        return "\n".join(lines) + "\n"

    def _held(self, name: str) -> str:
        if name != "I9":
            return "holds"
        quiet, beside = beside_storms(self.history)
        number = min((min(len(took), len(quiet.get(one, ()))) for one, took in beside.items()), default=0)
        return "holds" if number >= ENOUGH else "not judged, too few events beside a storm alone"

    def _ingest(self) -> tuple[list[float], list[float]]:
        """Return how long accepted requests took, in ms: in quiet times, and while nothing but the broker was away."""
        quiet, broken = [], []
        for post in self.history.posts:
            if not post.accepted:
                continue
            near = [span.kind for span in self.history.disturbed if span.began_at - 1 < post.at < span.ended_at + 2]
            if not near:
                quiet.append((post.ended_at - post.at) * 1000)
            elif all(kind.startswith(_BROKER) for kind in near):
                broken.append((post.ended_at - post.at) * 1000)
        return quiet, broken

    def _last_effect_seconds(self) -> float:
        mended_at = self.history.ended_at - self.settled_after_seconds
        return max([0.0, *(effect.at - mended_at for effect in self.history.effects)])


def _may_repeat(key: tuple[str, str]) -> bool:
    return key[1].startswith("Again ")


def _pair(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{percentile(values, 50):.0f} / {percentile(values, 99):.0f} (n={len(values)})"
