"""`python -m tests.faults.chaos --seed N --seconds S`: run, print the report, exit 1 when an invariant is contradicted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults.chaos.run import RATE, SETTLE_SECONDS, Options, run
from tests.faults.chaos.schedule import Kind


def main() -> int:
    """Run what was asked for."""
    asked = arguments()
    systems = [True] if asked.only_plain_celery else [False, True] if asked.plain_celery else [False]
    good = True
    for plain in systems:
        name = "plain" if plain else "leadwire"
        options = Options(
            seed=asked.seed,
            seconds=asked.seconds,
            rate=asked.rate,
            look_up=asked.look_up == "working",
            kinds=asked.faults,
            settle_seconds=asked.settle,
            database_url=asked.database_url,
            plain_celery=plain,
            folder=asked.folder / name if asked.folder else None,
        )
        report = run(options)
        good = good and report.holds
        sys.stdout.write(report.text() + "\n")
        sys.stdout.flush()
        if asked.report:
            with asked.report.open("a") as file:
                file.write(report.text() + "\n")
    return int(not good)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1, help="the same number gives the same events and faults; default 1"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of faults; default 60")
    parser.add_argument("--rate", type=float, default=RATE, help=f"events posted a second; default {RATE:g}")
    parser.add_argument("--look-up", choices=("working", "broken"), default="working", help="of the providers")
    parser.add_argument(
        "--plain-celery", action="store_true", help="run the plain script beside it, on the same faults"
    )
    parser.add_argument("--only-plain-celery", action="store_true", help="run nothing but the plain script")
    parser.add_argument(
        "--faults", type=_kinds, default=list(Kind), help=f"only these, with commas: {', '.join(Kind)}", metavar="KINDS"
    )
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS, help=f"s at most; default {SETTLE_SECONDS:g}")
    parser.add_argument("--database-url", help="an empty PostgreSQL database for the ledger instead of SQLite")
    parser.add_argument("--report", type=Path, help="append the report to this file")
    parser.add_argument("--folder", type=Path, help="keep logs and ledger in this new folder")
    return parser.parse_args(words)


def _kinds(text: str) -> list[Kind]:
    return [Kind(name.strip()) for name in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
