"""`leadwire up` killed again and again, while it works and while it starts: nothing lost, nothing twice, nobody left behind."""

import threading
import uuid

import httpx
import pytest

from tests.flow.processes import processes_of

ACCEPTED = 400
SENDERS = 4


class Senders:
    """Post events until stopped; `accepted` are the names of those that were answered with 2xx."""

    def __init__(self, line) -> None:
        self.line = line
        self.accepted: list[str] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with httpx.Client() as client:
            while not self._stopping.wait(0.01):
                event = self.line.event("deal.created", name=uuid.uuid4().hex)
                try:
                    if self.line.post(event, client=client).is_success:
                        self.accepted.append(event["lead"]["name"])
                except httpx.HTTPError:
                    self._stopping.wait(0.05)

    def stop(self) -> list[str]:
        """Stop, and return the names."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)
        return self.accepted


@pytest.mark.long
def test_four_hundred_accepted_events_survive_any_number_of_kills(own_line):
    """Each accepted event has its one task in the end: what was on its way at a kill is looked up, not sent blindly."""
    accepted: list[str] = []
    while len(accepted) < ACCEPTED:
        own_line.start()
        senders = Senders(own_line)
        assert own_line.until(lambda senders=senders: len(senders.accepted) > ACCEPTED // 3, 30)
        own_line.kill()
        accepted += senders.stop()
        assert own_line.until(lambda: not processes_of(own_line.home), 5), processes_of(own_line.home)
    own_line.start()

    def arrived():
        return sorted(task["title"].removeprefix("Person ") for task in own_line.sandbox.tasks("vambe"))

    assert own_line.until(lambda: set(accepted) <= set(arrived()), 90), set(accepted) - set(arrived())
    assert len(arrived()) == len(set(arrived()))
