"""`leadwire demo`: the whole line on this machine, from signed webhooks to tasks at sandbox providers, and what came of it.

Everything lives in a fresh temporary folder and on free ports; nothing is left running. It ends well only if every promised
task is at its provider exactly once, the redelivery created nothing, and the leads that were left alone are explained.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from console.demo.house import House
from console.demo.outcome import Outcome, shortcomings
from console.demo.screen import Screen
from console.demo.story import Posting, environment, postings
from console.samples import Posted, post, sign
from ingress import sources
from ingress.sources import Source
from rules.loader import load
from rules.vocabulary import Problem
from worker.context import FRONT_DOOR_SECTIONS, utc_now
from worker.ledger import open_ledger
from worker.rule_sets import read_files
from worker.sandbox import Sandbox

#: The whole demo takes no longer than this before it gives up waiting.
LIMIT_SECONDS: Final = 90.0
LOOK_SECONDS: Final = 0.1


def run(*, keep: bool) -> None:
    """Run the demo. Raises Problem, saying where the logs are, when anything is not as promised."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    give_up_at = time.monotonic() + LIMIT_SECONDS
    screen = Screen()
    with _folder(keep=keep, screen=screen) as folder, Sandbox() as sandbox:
        variables = environment()
        house = House(folder=folder, sandbox=sandbox, variables=variables)
        screen.opening(folder, house.rules)
        try:
            house.start(give_up_at, screen.starting)
            screen.running(house.url, sandbox.url)
            outcome = _play(house, sandbox, _built(house), screen, give_up_at)
            missing = shortcomings(outcome)
            screen.table(outcome)
            if missing:
                raise Problem("\n".join(["NOT as expected:", *(f"  {one}" for one in missing)]))
            screen.well(outcome)
        except Problem as problem:
            raise Problem(f"{problem}\n\n{house.tail()}") from problem
        finally:
            screen.stopping()
            house.stop()


@contextmanager
def _folder(*, keep: bool, screen: Screen) -> Iterator[Path]:
    """Make a fresh folder; it goes when all went well, and stays, with its place said, when not."""
    folder = Path(tempfile.mkdtemp(prefix="leadwire-demo-"))
    try:
        yield folder
    except Problem as problem:
        raise Problem(f"{problem}\n\nLedger and logs are kept in {folder}") from problem
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if keep:
        screen.kept(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _built(house: House) -> dict[str, Source]:
    rule_set = load(read_files(house.rules), house.variables, resolve=FRONT_DOOR_SECTIONS)
    built, faults = sources.build(rule_set.sources, house.variables, public_url=house.public_url)
    if faults:
        raise Problem("\n".join(str(fault) for fault in faults))
    return built


def _play(house: House, sandbox: Sandbox, built: dict[str, Source], screen: Screen, give_up_at: float) -> Outcome:
    """Post everything, then watch the tasks arrive until all is decided and delivered, or time is up."""
    now = utc_now()
    story = postings(now)
    answers = _post_all(story, built, house.url, screen, now)
    ledger = open_ledger(house.ledger_url)
    try:
        while True:
            outcome = Outcome(
                postings=story,
                answers=answers,
                events=tuple(ledger.queries.list_events()),
                tasks=tuple(ledger.queries.list_tasks()),
                at_mindhunters=tuple(sandbox.tasks("mindhunters")),
                at_vambe=tuple(sandbox.tasks("vambe")),
                refused=tuple(str(one["why"]) for one in sandbox.state()["refused"]),
            )
            screen.arrived(outcome)
            if outcome.is_quiet or time.monotonic() > give_up_at:
                return outcome
            house.check_alive()
            time.sleep(LOOK_SECONDS)
    finally:
        screen.arrivals_end()
        ledger.close()


def _post_all(
    story: Sequence[Posting], built: dict[str, Source], url: str, screen: Screen, now: datetime
) -> tuple[tuple[Posted, ...], ...]:
    """Post each webhook, those that come again twice with the same bytes; return the answers to each."""
    screen.posting()
    answers = []
    for posting in story:
        request = sign(built[posting.source], posting.sample, url, now)
        posted = tuple(post(request) for _ in range(2 if posting.again else 1))
        screen.posted(posting, posted)
        answers.append(posted)
    return tuple(answers)
