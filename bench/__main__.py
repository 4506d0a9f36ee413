"""`python -m bench`: which systems are measured, how often and how long, and what is printed of it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from bench.measure import BenchError, Plan, Result, gauge, measure
from bench.rule_matching import matching
from bench.systems import ROOT, Leadwire, Naive, System
from bench.table import by_role, table
from console.local_broker import find_server
from rules.vocabulary import Problem

BASE: Final = "naive"
ROUNDS: Final = 3
FULL: Final = Plan()
#: One short round: it shows that everything works, and nothing about speed.
QUICK: Final = Plan(seconds=1.0, rates=((50, 1.5),), warm_seconds=0.5, rest_seconds=0.2)
GAUGE_SECONDS: Final = 1.0
#: With more of the machine used by others than this, a round says little.
DISTURBED_PERCENT: Final = 15.0
MATCHING_SECONDS: Final = 2.0
MANY_RULES: Final = 10_000
QUICK_MATCHING_SECONDS: Final = 0.3
QUICK_MANY_RULES: Final = 1_000


def main() -> int:
    """Measure and print the table; 0 when Leadwire had every accepted event on disk and at the provider exactly once."""
    asked = _arguments()
    if not sys.platform.startswith("linux"):
        sys.stderr.write("the bench reads CPU and memory from /proc: it runs on Linux only\n")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parent: Path = asked.folder
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    try:
        return _measure_all(asked, folder)
    except (BenchError, Problem) as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure_all(asked: argparse.Namespace, folder: Path) -> int:
    known: Mapping[str, System] = {"naive": Naive(), "leadwire": Leadwire(asked.database_url)}
    systems = [known[name] for name in asked.systems]
    plan = QUICK if asked.quick else Plan(seconds=asked.seconds, connections=asked.connections)
    rounds = 1 if asked.quick else asked.rounds
    results: list[Result] = []
    for number in range(rounds):
        # Every other round the other way round: whoever comes second may find the machine warmer, or more tired.
        for system in systems if number % 2 == 0 else reversed(systems):
            sys.stderr.write(f"round {number + 1} of {rounds}: {system.name} ...\n")
            result = {"round": number, **measure(system, plan, folder / f"{number}-{system.name}")}
            results.append(result)
            _note(asked.out, result)
    gauged = gauge(folder / "gauge", GAUGE_SECONDS, plan.connections)
    _note(asked.out, {"gauge": gauged})
    lines = [
        table(results, asked.systems, BASE),
        "",
        *(line for name in asked.systems for line in by_role(results, name)),
        _gauge_line(gauged),
    ]
    if not asked.no_rules:
        many = QUICK_MANY_RULES if asked.quick else MANY_RULES
        matched = matching(QUICK_MATCHING_SECONDS if asked.quick else MATCHING_SECONDS, many=many)
        _note(asked.out, {"rules": matched})
        lines.append(_matching_line(matched))
    lines += [f"{system.name}: {system.described()}" for system in systems]
    lines.append(_machine_line(folder))
    busiest = max(result["others_percent"] for result in results)
    if busiest > DISTURBED_PERCENT:
        lines.append(
            f"Disturbed: others used {busiest:.0f} % of the CPU in a round; believe the CPU row at most, and run again"
        )
    lines.append(f"rounds {rounds}, connections {plan.connections}, full load {plan.seconds:g} s a round")
    sys.stdout.write("\n".join(lines) + "\n")
    ours = [result for result in results if result["system"] != BASE]
    faults = ("lost", "doubled", "not_recorded", "not_delivered")
    return int(any(result[fault] for result in ours for fault in faults))


def _gauge_line(gauged: Mapping[str, float]) -> str:
    return (
        f"Generator against sink, nothing between them: {gauged['requests_per_s']:,.0f} requests/s, "
        f"{gauged['generator_us']:.0f} + {gauged['sink_us']:.0f} us CPU per request"
    )


def _matching_line(matched: Mapping[str, Mapping[str, Any]]) -> str:
    few, one, spread = matched["few"], matched["one_type"], matched["many_types"]
    return (
        f"Rules, events decided/s: {few['per_s']:,.0f} against {few['rules']}; "
        f"{spread['per_s']:,.0f} ({spread['per_s'] / few['per_s']:.2f}x) against {spread['rules']:,}, ten for each type; "
        f"{one['per_s']:,.0f} ({one['per_s'] / few['per_s']:.4f}x) against {one['rules']:,}, all for one type"
    )


def _machine_line(folder: Path) -> str:
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, files on {_file_system(folder)}; "
        f"Python {platform.python_version()}, Celery {metadata.version('celery')}, broker {find_server().name}"
    )


def _note(out: Path | None, result: Mapping[str, Any]) -> None:
    """Append a result to the file that was asked for, as one line of JSON."""
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(result) + "\n")


def _file_system(folder: Path) -> str:
    """Return what kind of file system a folder is on: on one in memory, syncing costs nothing."""
    best = ("", "an unknown file system")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split(" ")
        if folder.is_relative_to(place) and len(place) >= len(best[0]):
            best = (place, kind)
    return f"{best[1]} (in memory: syncing costs nothing)" if best[1] == "tmpfs" else best[1]


def _arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, and print one table.")
    both = [BASE, Leadwire.name]
    parser.add_argument("--systems", nargs="+", choices=both, default=both, metavar="NAME", help=" or ".join(both))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument("--seconds", type=float, default=FULL.seconds, help="of full load a round; default 5")
    parser.add_argument("--connections", type=int, default=FULL.connections, help="of full load; default 16")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works")
    parser.add_argument("--no-rules", action="store_true", help="leave out the matching of many rules")
    parser.add_argument("--database-url", metavar="URL", help="PostgreSQL for Leadwire's ledger instead of SQLite")
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="where both write; default build/ here")
    parser.add_argument("--out", type=Path, help="append every result to this file, as JSON lines")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
