"""`python -m tests.faults.endurance`: whether memory stays flat and throughput level, with many tasks waiting.

Both are judged within one run: the last quarter of the events against the second one, when every process has warmed up. The
provider only counts, so that what grows is ours. Waiting tasks are planned a month ahead through the real rules.
"""

from __future__ import annotations

import argparse
import http.client
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rules.engine import decide
from rules.loader import load
from rules.vocabulary import Contact, Event
from tests.faults.chaos import events
from tests.faults.chaos.houses import WORKERS, Leadwire
from tests.servers.sink import Sink
from worker.clock import utc_now
from worker.ledger import Delivery, IncomingEvent

THREADS = 8
#: So many accepted events may wait for their task to arrive: the throughput is that of the whole line.
BACKLOG = 1_000
#: Samples are taken every so many events.
SAMPLES = 20
#: The last quarter against the second.
MOST_MEMORY, LEAST_THROUGHPUT = 1.10, 0.80
GROUP = 500
PATIENCE_SECONDS = 120.0
ROLES = ("ingress", *WORKERS)

RULES = f"""
{events.RULES.split("rules:")[0]}
rules:
  - id: now
    when: lead.created
    then:
      - team_task: {{title: "Meet {{{{ subject.id }}}}", priority: low, assign: [{events.PERSON}]}}
  - id: in-a-month
    when: lead.waiting
    then:
      - make_call: {{agent: {events.AGENT}, title: "Call {{{{ subject.id }}}}", at: +30d}}
"""


class Counter(Sink):
    """Both providers: they count."""

    @property
    def mindhunters_url(self) -> str:
        """Where calls go."""
        return f"{self.url}/api/v1"

    @property
    def vambe_url(self) -> str:
        """Where team tasks go."""
        return f"{self.url}/api/public"


class House(Leadwire):
    """Leadwire with the rules of this run."""

    rules = RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was measured when so many tasks had arrived: since the sample before, a second; and MiB of each role."""

    arrived: int
    a_second: float
    memory: dict[str, float]

    @property
    def in_all(self) -> float:
        """The memory of all roles, in MiB."""
        return sum(self.memory.values())


def plan_ahead(house: House, number: int) -> float:
    """Record so many events whose tasks are due in a month; return how long it took, in seconds."""
    assert house.ledger is not None
    rule_set = load({"rules.yaml": RULES}, {"CRM_SECRET": events.SECRET})
    began = time.monotonic()
    for first in range(0, number, GROUP):
        now = utc_now()
        group = []
        for n in range(first, min(number, first + GROUP)):
            name = f"waiting-{n:07d}"
            contact = Contact(id=name, name="Ana Quilapan", phone=f"+5691{n:07d}", country="CL")
            group.append(
                Event(
                    id=f"ev_{name}", source="crm", type="lead.waiting", occurred_at=now, received_at=now, contact=contact,
                    data={"id": name},
                )
            )  # fmt: skip
        incoming = [IncomingEvent(event=event, dedupe_key=event.id, content_hash=event.id) for event in group]
        delivery = Delivery(id=f"dl_{first}", source="crm", received_at=now, body=b"{}", content_hash=str(first))
        house.ledger.inbox.record(delivery, incoming)
        plans = [decide(rule_set, event, now=now) for event in group]
        assert all(len(plan.tasks) == 1 for plan in plans), plans[0]
        house.ledger.tasks.insert(plans, now)
    return time.monotonic() - began


class Load:
    """Posts events over kept connections, as fast as they are delivered."""

    def __init__(self, house: House, sink: Counter, number: int) -> None:
        self._house, self._sink, self._number = house, sink, number
        self._next, self.accepted, self.refused = 0, 0, 0
        self._changing = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(THREADS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._house.port, timeout=20)
        while (number := self._take()) is not None:
            while self.accepted - len(self._sink.arrived) > BACKLOG:
                time.sleep(0.01)
            content = events.body(0, number)
            while not self._posted(connection, content):
                with self._changing:
                    self.refused += 1
                time.sleep(0.2)
            with self._changing:
                self.accepted += 1
        connection.close()

    def _take(self) -> int | None:
        with self._changing:
            if self._next >= self._number:
                return None
            self._next += 1
            return self._next - 1

    def _posted(self, connection: http.client.HTTPConnection, content: bytes) -> bool:
        headers = {"X-Signature": events.signature(content), "Content-Type": "application/json"}
        try:
            connection.request("POST", events.PATH, content, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return False
        return 200 <= answer.status < 300


def memory_of(house: House) -> dict[str, float]:
    """Return the proportional memory of each role with its children, in MiB."""
    found = {}
    for role in ROLES:
        found[role] = 0.0
        for pid in house.processes[role].group():
            with suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                found[role] += int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1024
    return found


def measure(house: House, sink: Counter, number: int) -> list[Sample]:
    """Post so many events and return the samples."""
    load = Load(house, sink, number)
    load.start()
    samples: list[Sample] = []
    step = max(1, number // SAMPLES)
    before, since = len(sink.arrived), time.monotonic()
    begun, moved = before, since
    while len(sink.arrived) - begun < number:
        time.sleep(0.02)
        arrived, now = len(sink.arrived), time.monotonic()
        if arrived - before >= step or (arrived - begun >= number and arrived > before):
            sample = Sample(
                arrived=arrived - begun, a_second=(arrived - before) / (now - since), memory=memory_of(house)
            )
            samples.append(sample)
            sys.stderr.write(f"{sample.arrived:>8} {sample.a_second:8.0f}/s {sample.in_all:8.1f} MiB\n")
            before, since, moved = arrived, now, now
        if now - moved > PATIENCE_SECONDS:
            raise RuntimeError(f"{number - arrived + begun} of {number} tasks have not arrived, and nothing moves")
        house.look()
    return samples


def verdict(samples: list[Sample]) -> tuple[str, bool]:
    """Return how the last quarter compares with the second, in words, and whether that is good."""
    quarter = max(1, len(samples) // 4)
    second, last = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    memory = max(one.in_all for one in last) / max(one.in_all for one in second)
    speed = (sum(one.a_second for one in last) / len(last)) / (sum(one.a_second for one in second) / len(second))
    good = memory <= MOST_MEMORY and speed >= LEAST_THROUGHPUT
    words = f"last quarter against the second: memory {memory:.2f}x, throughput {speed:.2f}x"
    return f"{words}: {'flat and level' if good else 'NOT flat and level'}", good


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.endurance", description=__doc__)
    parser.add_argument("--events", type=int, default=50_000, help="events posted and delivered; default 50000")
    parser.add_argument("--waiting", type=int, default=100_000, help="tasks that wait beside them; default 100000")
    parser.add_argument("--report", type=Path, help="append the report to this file")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="leadwire-endurance-"))
    sink = Counter()
    sink.start()
    house = House(folder, sink)
    lines = [f"{asked.events} events while {asked.waiting} tasks wait"]
    try:
        house.start()
        took = plan_ahead(house, asked.waiting)
        lines.append(f"planning ahead: {asked.waiting / max(took, 0.001):.0f} tasks/s")
        samples = measure(house, sink, asked.events)
        lines += [
            f"  {one.arrived:>8} arrived {one.a_second:8.0f}/s   "
            + "  ".join(f"{role} {one.memory[role]:.0f} MiB" for role in ROLES)
            for one in samples
        ]
        twice = len(sink.arrived) - len({title for _, title in sink.arrived})
        words, good = verdict(samples)
        size = (folder / "ledger.sqlite3").stat().st_size / 1024**2
        lines += [words, f"delivered twice: {twice}; ledger {size:.0f} MiB"]
        good = good and not twice
    finally:
        house.stop()
        sink.stop()
        shutil.rmtree(folder, ignore_errors=True)
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if asked.report:
        with asked.report.open("a") as file:
            file.write(text)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
