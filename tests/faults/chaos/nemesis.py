"""Carries out a schedule of faults on a house, mends each when its time is over, and notes what it did and what it could not."""

from __future__ import annotations

import heapq
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.chaos.history import Disturbed
from tests.faults.chaos.houses import WORKERS, House
from tests.faults.chaos.schedule import Fault, Kind

#: How often the house is looked at for what ended by itself.
LOOK_SECONDS = 0.5
_FREEZES = {Kind.FREEZE_WORKER, Kind.FREEZE_INGRESS, Kind.FREEZE_BROKER}
_STOPS = {Kind.STOP_WORKER, Kind.STOP_INGRESS}
_KILLS = {Kind.KILL_WORKER, Kind.KILL_INGRESS, Kind.KILL_BROKER}


@dataclass(slots=True)
class Nemesis:
    """One run's faults. `disturbed` are those that were injected, `left_out` those that could not be, with the reason."""

    house: House
    schedule: Sequence[Fault]
    disturbed: list[Disturbed] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    ended_by_itself: Counter[str] = field(default_factory=Counter)
    clock_moved_seconds: float = 0.0
    _began_at: dict[int, float] = field(default_factory=dict)

    def run(self, seconds: float) -> None:
        """Disturb the house for so long, then mend everything."""
        begun = time.monotonic()
        moments = [(fault.at_seconds, 0, number) for number, fault in enumerate(self.schedule)]
        moments += [(fault.at_seconds + fault.lasts_seconds, 1, number) for number, fault in enumerate(self.schedule)]
        heapq.heapify(moments)
        looked = 0.0
        while (passed := time.monotonic() - begun) < seconds:
            while moments and moments[0][0] <= passed:
                _, ending, number = heapq.heappop(moments)
                self._end(number) if ending else self._begin(number)
            if passed - looked >= LOOK_SECONDS:
                looked = passed
                self.ended_by_itself.update(self.house.look())
            following = moments[0][0] if moments else seconds
            time.sleep(max(0.0, min(following, looked + LOOK_SECONDS, seconds) - passed))
        for number in list(self._began_at):
            self._end(number)

    def watch(self) -> None:
        """Start again what has ended by itself since."""
        self.ended_by_itself.update(self.house.look())

    def _begin(self, number: int) -> None:
        fault = self.schedule[number]
        why_not = self._inject(fault, number)
        if why_not:
            self.left_out[f"{fault.kind}: {why_not}"] += 1
        else:
            self._began_at[number] = time.time()

    def _inject(self, fault: Fault, number: int) -> str | None:
        """Inject a fault; return why not."""
        name = _target(fault)
        if fault.kind in _KILLS | _STOPS | _FREEZES:
            process = self.house.processes[name]
            if process.held or not process.is_alive():
                return "it was down already"
            if fault.kind in _FREEZES:
                process.signal(signal.SIGSTOP)
                return None
            process.held = True
            if fault.kind in _STOPS:
                process.signal(signal.SIGTERM, children=False)  # which the house starts again when it has ended
                return None
            process.kill()
            if not fault.leave_lease:
                self.house.mourn(name)
        elif fault.kind is Kind.EMPTY_BROKER and not self.house.empty_broker():
            return "it could not be reached"
        elif fault.kind is Kind.FILL_DISK:
            self.house.fill_disk(full=True)
        elif fault.kind is Kind.MOVE_CLOCK:
            if not self.house.move_clock(fault.jump_seconds):
                return "it cannot be moved here"
            self.clock_moved_seconds = max(self.clock_moved_seconds, abs(fault.jump_seconds))
        elif fault.kind is Kind.STORM and fault.provider is not None:
            self.house.providers.storm(number, fault.provider, fault.storm, fault.every)
        return None

    def _end(self, number: int) -> None:
        began_at = self._began_at.pop(number, None)
        if began_at is None:
            return
        fault = self.schedule[number]
        if fault.kind in _KILLS:
            self.house.restart(_target(fault))
        elif fault.kind in _STOPS:
            self.house.processes[_target(fault)].held = False
        elif fault.kind in _FREEZES:
            self.house.processes[_target(fault)].signal(signal.SIGCONT)
        elif fault.kind is Kind.FILL_DISK:
            self.house.fill_disk(full=False)
        elif fault.kind is Kind.MOVE_CLOCK:
            self.house.move_clock(0)
        elif fault.kind is Kind.STORM:
            self.house.providers.calm(number)
        self.disturbed.append(
            Disturbed(kind=str(fault.kind), began_at=began_at, ended_at=time.time(), provider=fault.provider)
        )


def _target(fault: Fault) -> str:
    """Return the name of the process that a fault meets."""
    role = str(fault.kind).split(" ", 1)[0]
    return WORKERS[fault.target] if role == "worker" else role
