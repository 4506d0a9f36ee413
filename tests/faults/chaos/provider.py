"""Both providers: the sandbox, which notes each effect in a file of its own before it answers, and can be put in a storm."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tests.faults.chaos.history import Effect
from tests.faults.chaos.schedule import STORMS
from worker.sandbox import Sandbox
from worker.sandbox.faults import Misbehaviour, SandboxRequest, SandboxResponse


class Providers(Sandbox):
    """The sandbox with a log of effects; `look_up` False has every question about tasks answered with 500."""

    def __init__(self, log: Path, *, look_up: bool) -> None:
        super().__init__()
        self.effects: list[Effect] = []
        self._log = log.open("a", buffering=1)
        self._noting = threading.Lock()
        self._storms: dict[int, dict[str, object]] = {}
        self.look_up = look_up
        self._apply()

    def answer(self, provider: str, call: SandboxRequest) -> tuple[SandboxResponse | None, Misbehaviour | None]:
        """Take a call as the sandbox does, and note what it made before anybody hears of it."""
        said, misdeed = super().answer(provider, call)
        if call.method == "POST" and said is not None and said.task is not None:
            effect = Effect(provider=provider, title=str(call.document["title"]), at=time.time(), external_id=said.task)
            with self._noting:
                self.effects.append(effect)
                self._log.write(f"{effect.at:.6f} {provider} {said.task} {effect.title}\n")
        return said, misdeed

    def storm(self, number: int, provider: str, name: str, every: int) -> None:
        """Begin a storm under a number of its own."""
        self._storms[number] = {"provider": provider, "times": None, "every": every, "answer": STORMS[name]}
        self._apply()

    def calm(self, number: int) -> None:
        """End a storm."""
        self._storms.pop(number, None)
        self._apply()

    def _apply(self) -> None:
        self.behave()
        broken = [] if self.look_up else [{"method": "GET", "times": None, "answer": {"status": 500}}]
        self.script([*broken, *self._storms.values()])

    def close(self) -> None:
        """Stop, and close the log."""
        self.stop()
        self._log.close()
