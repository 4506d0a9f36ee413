"""One run from start to judgement: a house, a sender, a nemesis; then everything is mended, waited for, and checked."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.faults.chaos import events
from tests.faults.chaos.history import History
from tests.faults.chaos.houses import CREDENTIALS, House, Leadwire, PlainCelery
from tests.faults.chaos.invariants import judge, leaks_in
from tests.faults.chaos.nemesis import Nemesis
from tests.faults.chaos.provider import Providers
from tests.faults.chaos.report import ChaosReport
from tests.faults.chaos.schedule import Kind, draw
from tests.faults.chaos.sender import Sender

RATE = 20.0
#: More than the look-ups of a provider that never answers them: 5 s, 20 s, 1 min, 5 min.
SETTLE_SECONDS = 480.0
#: A shorter run does not wait for those.
PATIENT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is run: the same seed, seconds, rate and kinds give the same events and the same faults."""

    seed: int = 1
    seconds: float = 60.0
    rate: float = RATE
    look_up: bool = True
    kinds: Collection[Kind] = tuple(Kind)
    settle_seconds: float = SETTLE_SECONDS
    database_url: str | None = None
    plain_celery: bool = False
    #: Kept after the run when given.
    folder: Path | None = None


def run(options: Options) -> ChaosReport:
    """Make one run and return what it came to."""
    folder = options.folder or Path(tempfile.mkdtemp(prefix="leadwire-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    schedule = draw(options.seed, options.seconds, options.kinds)
    providers = Providers(folder / "effects.txt", look_up=options.look_up)
    providers.start()
    house: House
    if options.plain_celery:
        house = PlainCelery(folder, providers)
    else:
        house = Leadwire(folder, providers, database_url=options.database_url)
    house.patient = options.seconds >= PATIENT_SECONDS
    try:
        house.start()
        sender = Sender(house.port, options.seed, options.rate, folder / "accepted.txt")
        nemesis = Nemesis(house, schedule)
        sender.start()
        nemesis.run(options.seconds)
        mended_at = time.time()
        while not sender.finished(0.5):
            nemesis.watch()
        left = _settle(house, nemesis, sender, options.settle_seconds)
        ended_at = time.time()
        return _report(options, house, sender, nemesis, (mended_at, ended_at, left))
    finally:
        house.stop()
        providers.close()
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def _settle(house: House, nemesis: Nemesis, sender: Sender, patience_seconds: float) -> int:
    """Wait until nothing is going to happen any more; return how much still is when patience ends."""
    give_up_at = time.monotonic() + patience_seconds
    accepted = sender.answered
    while (left := house.unsettled(accepted)) and time.monotonic() < give_up_at:
        nemesis.watch()
        time.sleep(0.5)
    return left


def _report(
    options: Options, house: House, sender: Sender, nemesis: Nemesis, moments: tuple[float, float, int]
) -> ChaosReport:
    mended_at, ended_at, left = moments
    ours = isinstance(house, Leadwire)
    texts = {path.name: path.read_text(errors="replace") for path in sorted(house.folder.glob("*.log"))}
    history = History(
        posts=tuple(sender.posts),
        effects=tuple(house.providers.effects),
        events=house.recorded() if ours else {},
        touches=house.touches() if ours else (),
        expected={post.event: events.expected(post.event) for post in sender.posts},
        disturbed=tuple(nemesis.disturbed),
        integrity=house.integrity() if ours else (),
        leaks=leaks_in(texts, (*events.PERSONAL, events.SECRET, *CREDENTIALS.values())),
        ended_at=ended_at,
        clock_moved_seconds=nemesis.clock_moved_seconds,
    )
    return ChaosReport(
        system=house.name,
        seed=options.seed,
        seconds=options.seconds,
        look_up=options.look_up,
        history=history,
        violations=judge(history) if ours else {},
        left_out=dict(nemesis.left_out),
        ended_by_itself=dict(nemesis.ended_by_itself),
        settled_after_seconds=ended_at - mended_at,
        unsettled=left,
    )
