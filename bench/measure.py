"""One measurement of one system: cold start, rest, two fixed rates, then as fast as it goes until everything has arrived.

Nothing is asserted about time; what is counted is whether every event that was answered with 2xx reached the sink, once.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from bench import processes
from bench.events import body, event_id, request
from bench.generator import Answer, post
from bench.systems import ROOT, Place, System, free_port
from ingress.processes import dies_with_me

COLD_SECONDS: Final = 60.0
DRAIN_SECONDS: Final = 90.0
#: Requests that warm a system up, at this rate.
WARM_RATE: Final = 50
COLD_PAUSE_SECONDS: Final = 0.02
#: How much of each log is shown when a measurement cannot be made.
LOG_LINES: Final = 15
LOOK_SECONDS: Final = 0.05
#: What happens right after the last arrival (settling, acknowledging) belongs to the event's cost.
AFTER_SECONDS: Final = 0.5

Result = dict[str, Any]


class BenchError(Exception):
    """A measurement that cannot be made, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how hard a system is driven."""

    seconds: float = 5.0
    connections: int = 16
    #: (events a second, for how many seconds)
    rates: tuple[tuple[float, float], ...] = ((10, 8), (50, 6))
    warm_seconds: float = 2.0
    rest_seconds: float = 1.5
    #: The wait for arrivals ends when none came for so long.
    quiet_seconds: float = 12.0
    #: How long the last outcomes may take to be on disk.
    settle_seconds: float = 5.0


@dataclass(slots=True)
class Arrivals:
    """What the sink has seen: per event id its first moment, and how often it came."""

    file: Path
    quiet_seconds: float
    first: dict[str, float] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    _read_bytes: int = 0

    def read(self) -> None:
        """Take in what is new."""
        with self.file.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.decode().splitlines():
            moment, event = line.split(" ")
            self.first.setdefault(event, float(moment))
            self.times[event] += 1

    def wait_for(self, wanted: set[str], limit_seconds: float) -> set[str]:
        """Wait until all have arrived, none came for long, or the time is up; return those that did arrive."""
        begin = last = time.monotonic()
        count = -1
        while True:
            self.read()
            now = time.monotonic()
            if len(self.times) != count:
                count, last = len(self.times), now
            if wanted <= self.first.keys() or now - last > self.quiet_seconds or now - begin > limit_seconds:
                return wanted & self.first.keys()
            time.sleep(LOOK_SECONDS)


@dataclass(slots=True)
class Measurement:
    """A system that runs, and everything that was sent to it."""

    system: System
    plan: Plan
    place: Place
    arrivals: Arrivals
    sink: processes.Started
    started: list[processes.Started] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    #: Requests that were refused or not answered.
    refused: int = 0
    generator_us: float = 0.0

    def run(self) -> Result:
        """Measure; raises BenchError when the system does not come up."""
        begin = time.monotonic()
        self.started = self.system.start(self.place)
        cold_seconds = self._cold_start(begin)
        self._settle(self._load(self.plan.warm_seconds, rate=WARM_RATE))
        time.sleep(self.plan.rest_seconds)
        memory = processes.memory_mb(self.started, self.system.role_of)
        result: Result = {
            "system": self.system.name,
            "cold_s": cold_seconds,
            "memory_mb": sum(memory.values()) - memory.get("flower", 0.0),
            "flower_mb": memory.get("flower", 0.0),
            "memory_by_role": memory,
        }
        for rate, seconds in self.plan.rates:
            result[f"at_{rate:g}"] = self._latencies(self._load(seconds, rate=rate))
        result |= self._flood()
        result |= self._proof()
        return result | {"took_s": time.monotonic() - begin}

    def _cold_start(self, begin: float) -> float:
        """Post until one event has become a task, and return the seconds since the start of the first process."""
        run = new_run()
        for number in count():
            content = request(body(run, number), self.place.port)
            status = post(self.place.port, content)
            if is_success(status):
                self.accepted.add(event_id(run, number))
            self.arrivals.read()
            if self.arrivals.first:
                break
            ended = [one.role for one in self.started if one.process.poll() is not None]
            if ended or time.monotonic() - begin > COLD_SECONDS:
                what = f"its {ended[0]} ended" if ended else f"no task within {COLD_SECONDS:.0f} s"
                raise BenchError(
                    f"{self.system.name} does not start: {what}; {len(self.accepted)} events answered with 2xx"
                )
            time.sleep(COLD_PAUSE_SECONDS)
        self.arrivals.wait_for(self.accepted, DRAIN_SECONDS)
        return min(self.arrivals.first.values()) - begin

    def _load(self, seconds: float, *, rate: float | None = None) -> _Driven:
        """Run the generator and return what it noted."""
        run = new_run()
        out = self.place.folder / f"load-{run}.json"
        how = [f"--rate={rate}"] if rate else [f"--connections={self.plan.connections}"]
        driven = drive(self.place.port, run, seconds, how, out)
        for number, status, _, _ in driven.answers:
            if is_success(status):
                self.accepted.add(event_id(run, number))
            else:
                self.refused += 1
        return driven

    def _settle(self, driven: _Driven) -> set[str]:
        return self.arrivals.wait_for(driven.accepted(), DRAIN_SECONDS)

    def _latencies(self, driven: _Driven) -> Result:
        """Return the milliseconds from sending to the 2xx, and to the arrival at the provider."""
        arrived = self._settle(driven)
        good = [answer for answer in driven.answers if is_success(answer[1])]
        to_answer = [(answered - sent) * 1000 for _, _, sent, answered in good]
        to_sink = [
            (self.arrivals.first[event] - sent) * 1000
            for number, _, sent, _ in good
            if (event := event_id(driven.run, number)) in arrived
        ]
        return {
            "sent": len(driven.answers),
            "ack_p50_ms": percentile(to_answer, 50),
            "ack_p99_ms": percentile(to_answer, 99),
            "e2e_p50_ms": percentile(to_sink, 50),
            "e2e_p99_ms": percentile(to_sink, 99),
        }

    def _flood(self) -> Result:
        """Drive it as hard as it goes, wait until all has arrived, and say what that cost."""
        cpu, machine, begin = self._cpu(), processes.machine_seconds(), time.monotonic()
        ours = self._everything()
        driven = self._load(self.plan.seconds)
        arrived = self._settle(driven)
        time.sleep(AFTER_SECONDS)
        used = {role: seconds - cpu.get(role, 0.0) for role, seconds in self._cpu().items()}
        spent_seconds = time.monotonic() - begin
        others = processes.machine_seconds() - machine - (self._everything() - ours)
        moments = [self.arrivals.first[event] for event in arrived]
        events = len(driven.accepted())
        if not events:
            raise BenchError(f"{self.system.name} accepted nothing under load")
        in_time = sum(
            1
            for _, status, _, answered in driven.answers
            if is_success(status) and answered <= driven.begin + driven.seconds
        )
        waits = [(answered - sent) * 1000 for _, status, sent, answered in driven.answers if is_success(status)]
        by_role = {role: seconds * 1000 / events for role, seconds in used.items()}
        system_ms = sum(ms for role, ms in by_role.items() if role != "sink")
        return {
            "events": events,
            "ingest_per_s": in_time / driven.seconds,
            "flood_p50_ms": percentile(waits, 50),
            "flood_p99_ms": percentile(waits, 99),
            "e2e_per_s": len(moments) / max(max(moments) - min(moments), 1e-3) if moments else 0.0,
            "cpu_ms": system_ms,
            "cpu_ms_by_role": {**by_role, "generator": driven.cpu_seconds * 1000 / events},
            "others_percent": max(0.0, others) / spent_seconds / (os.cpu_count() or 1) * 100,
        }

    def _proof(self) -> Result:
        """Compare what was accepted with what is on disk and with what arrived, event by event."""
        give_up_at = time.monotonic() + self.plan.settle_seconds
        while (recorded := self.system.recorded(self.place)) is not None:
            if self.accepted <= recorded.delivered or time.monotonic() > give_up_at:
                break
            time.sleep(LOOK_SECONDS)
        self.arrivals.read()
        return {
            "accepted": len(self.accepted),
            "refused": self.refused,
            "lost": len(self.accepted - self.arrivals.first.keys()),
            "doubled": sum(1 for times in self.arrivals.times.values() if times > 1),
            "not_recorded": None if recorded is None else len(self.accepted - recorded.events),
            "not_delivered": None if recorded is None else len(self.accepted - recorded.delivered),
        }

    def _cpu(self) -> dict[str, float]:
        return {
            **processes.cpu_seconds(self.started, self.system.role_of),
            **processes.cpu_seconds([self.sink], lambda _: None),
        }

    def _everything(self) -> float:
        return sum(self._cpu().values()) + processes.own_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Driven:
    """What the generator noted of one load."""

    run: str
    answers: Sequence[Answer]
    seconds: float
    cpu_seconds: float

    @property
    def begin(self) -> float:
        """The moment of the first request."""
        return min(sent for _, _, sent, _ in self.answers)

    def accepted(self) -> set[str]:
        """Return the ids of the events that were answered with 2xx."""
        return {event_id(self.run, number) for number, status, _, _ in self.answers if is_success(status)}


def measure(system: System, plan: Plan, folder: Path) -> Result:
    """Measure a system once, in a folder that is made for it and removed again."""
    folder.mkdir(parents=True)
    arrivals = Arrivals(folder / "arrivals.txt", plan.quiet_seconds)
    sink, sink_port = start_sink(folder)
    place = Place(folder=folder, port=free_port(), sink_url=f"http://127.0.0.1:{sink_port}")
    measurement = Measurement(system=system, plan=plan, place=place, arrivals=arrivals, sink=sink)
    try:
        return measurement.run()
    except BenchError as fault:
        raise BenchError(f"{fault}\n{_logs(folder)}") from None
    finally:
        processes.end(measurement.started)
        processes.end([sink])
        shutil.rmtree(folder)


def _logs(folder: Path) -> str:
    """Return the last lines of every log below a folder."""
    told = []
    for path in (folder / "log.txt", *sorted(folder.glob("home/logs/*.log"))):
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
            told += [f"--- {path.name}", *lines]
    return "\n".join(told)


def start_sink(folder: Path) -> tuple[processes.Started, int]:
    """Start the sink, which writes to `arrivals.txt` in the folder; return it and its port."""
    command = [sys.executable, "-m", "bench.sink", f"--arrivals={folder / 'arrivals.txt'}"]
    said = folder / "sink.txt"
    sink = processes.start("sink", command, folder=ROOT, environment=os.environ, log=said)
    give_up_at = time.monotonic() + COLD_SECONDS
    while not said.read_text().endswith("\n"):
        if time.monotonic() > give_up_at or sink.process.poll() is not None:
            processes.end([sink])
            raise BenchError(f"the sink does not start: {said.read_text()}")
        time.sleep(LOOK_SECONDS)
    return sink, int(said.read_text())


def drive(port: int, run: str, seconds: float, how: Sequence[str], out: Path) -> _Driven:
    """Run the generator to its end."""
    command = [sys.executable, "-m", "bench.generator", f"--port={port}", f"--run={run}", f"--seconds={seconds}", *how]
    subprocess.run(dies_with_me([*command, f"--out={out}"]), cwd=ROOT, check=True, timeout=seconds + 120)  # noqa: S603 - our own command
    found = json.loads(out.read_text())
    out.unlink()
    return _Driven(
        run=run,
        answers=[tuple(answer) for answer in found["answers"]],
        seconds=found["seconds"],
        cpu_seconds=found["cpu_seconds"],
    )


def gauge(folder: Path, seconds: float, connections: int) -> Result:
    """Drive the sink itself: what the generator and the sink can do when nothing is between them."""
    folder.mkdir(parents=True)
    sink, port = start_sink(folder)
    try:
        before = processes.cpu_seconds([sink], lambda _: None)["sink"]
        driven = drive(port, new_run(), seconds, [f"--connections={connections}"], folder / "gauge.json")
        sink_seconds = processes.cpu_seconds([sink], lambda _: None)["sink"] - before
    finally:
        processes.end([sink])
        shutil.rmtree(folder)
    count = len(driven.answers)
    return {
        "requests_per_s": count / driven.seconds,
        "generator_us": driven.cpu_seconds * 1e6 / count,
        "sink_us": sink_seconds * 1e6 / count,
    }


def new_run() -> str:
    """Return six hexadecimal characters that no other load has."""
    return secrets.token_hex(3)


def is_success(status: int) -> bool:
    """Say whether a status is a 2xx."""
    return status // 100 == 2  # noqa: PLR2004 - that is what 2xx means


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the value that so many percent do not exceed, None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else None
