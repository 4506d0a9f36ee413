"""What goes wrong when: drawn from one number, so that a run can be repeated, and the same faults meet another system."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

#: Nothing is disturbed in this part of the run, so that there is something to compare with.
QUIET_SHARE, QUIET_SECONDS = 0.15, 3.0
#: The mean time between two faults.
BETWEEN_SECONDS = 2.0
#: How far the clock of one worker is moved: ahead past every lease. Not behind by a minute and more, because what a provider is
#: then asked to do lies in its past, and it refuses; not by hours, because what such a worker writes waits for as long.
JUMPS_SECONDS = (50, -50, 90)
#: A lease ends 60 s after its claim; what a killed worker held is left to that only where the run outlasts it.
LEASE_SECONDS = 60.0
PROVIDERS = ("mindhunters", "vambe")


class Kind(StrEnum):
    """What can go wrong."""

    KILL_WORKER = "worker killed"
    KILL_INGRESS = "ingress killed"
    KILL_BROKER = "broker killed"
    STOP_WORKER = "worker stopped"
    STOP_INGRESS = "ingress stopped"
    FREEZE_WORKER = "worker frozen"
    FREEZE_INGRESS = "ingress frozen"
    FREEZE_BROKER = "broker frozen"
    EMPTY_BROKER = "broker emptied"
    FILL_DISK = "disk full"
    MOVE_CLOCK = "clock moved"
    STORM = "provider storm"


#: How often each is drawn, and how long it lasts: for what is killed or stopped, until it is started again.
_DRAWN = {
    Kind.KILL_WORKER: (4, 0.2, 1.5),
    Kind.KILL_INGRESS: (2, 0.2, 1.0),
    Kind.KILL_BROKER: (3, 0.1, 2.0),
    Kind.STOP_WORKER: (2, 0.5, 2.0),
    Kind.STOP_INGRESS: (1, 0.5, 2.0),
    Kind.FREEZE_WORKER: (2, 0.5, 5.0),
    Kind.FREEZE_INGRESS: (1, 0.5, 2.0),
    Kind.FREEZE_BROKER: (2, 0.5, 4.0),
    Kind.EMPTY_BROKER: (3, 0.0, 0.0),
    Kind.FILL_DISK: (2, 0.5, 2.5),
    Kind.MOVE_CLOCK: (1, 2.0, 6.0),
    Kind.STORM: (5, 1.0, 6.0),
}

#: How a provider misbehaves, each for a share of its requests; words of the sandbox's fault script.
STORMS = {
    "500": {"status": 500},
    "500 after storing": {"status": 500, "store": True},
    "503": {"status": 503},
    "429": {"status": 429, "headers": {"Retry-After": "1"}},
    "slow": {"delay_seconds": 4.0},
    "html 502": "html_502",
    "hangs up before storing": "hang_up_before",
    "hangs up after storing": "hang_up_after",
    "resets after storing": "reset_after",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: when it begins, how long it lasts, whom it meets (a number, or a provider), and how in particular."""

    at_seconds: float
    kind: Kind
    lasts_seconds: float = 0.0
    target: int = 0
    provider: str | None = None
    storm: str = ""
    every: int = 1
    jump_seconds: int = 0
    #: Whether what a killed worker held is left to the end of its lease, as where no supervisor sees its death.
    leave_lease: bool = False


def draw(seed: int, seconds: float, kinds: Collection[Kind] = tuple(Kind)) -> tuple[Fault, ...]:
    """Return the faults of a run of so many seconds, in order; the same for the same numbers."""
    chance = random.Random(seed)
    faults = []
    at_seconds = max(QUIET_SECONDS, seconds * QUIET_SHARE)
    chosen = [kind for kind in _DRAWN if kind in kinds]
    while chosen:
        at_seconds += min(chance.expovariate(1 / BETWEEN_SECONDS), 4 * BETWEEN_SECONDS)
        kind = chance.choices(chosen, [_DRAWN[one][0] for one in chosen])[0]
        _, least, most = _DRAWN[kind]
        fault = Fault(
            at_seconds=round(at_seconds, 3),
            kind=kind,
            lasts_seconds=round(chance.uniform(least, most), 3),
            target=chance.randrange(2),
            provider=chance.choice(PROVIDERS) if kind is Kind.STORM else None,
            storm=chance.choice(sorted(STORMS)) if kind is Kind.STORM else "",
            every=chance.choice((1, 2, 3)),
            jump_seconds=chance.choice(JUMPS_SECONDS),
            leave_lease=chance.random() < 0.3 and at_seconds + 2 * LEASE_SECONDS < seconds,
        )
        if fault.at_seconds + fault.lasts_seconds > seconds:
            break
        faults.append(fault)
    return tuple(faults)
