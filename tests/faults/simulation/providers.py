"""The providers of a run: the sandbox's own stand-ins, behind a line that does all that a line can do.

A mood says how a provider treats a request. Whatever the answer was, `effects` holds what it made: the truth that the
checker compares with the ledger.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from rules.vocabulary import ProviderName
from worker.providers import Answered, NeverSent, NoAnswer, NotBegun
from worker.sandbox import mindhunters, vambe
from worker.sandbox.faults import SandboxRequest
from worker.sandbox.switches import Switches

#: A provider that has not made a task this long after the request came makes it no more.
LATEST_SECONDS = 30.0
#: How long a task may be missing in the provider's own list.
LAG_SECONDS = 8.0
#: A provider that has hung up makes the task within so long or never: it is listed 20 s after the end of the attempt.
AFTER_HANGING_UP_SECONDS = 11.5

_MARK = re.compile(r"\[(lw:[0-9a-f]{12})\]")


@dataclass(frozen=True)
class Fate:
    """What becomes of one request: is it read, made, answered; seconds count from when it leaves.

    `status` 0 stands for an answer that never comes; None for the provider's own.
    """

    reached: bool = True
    made: bool = True
    after_seconds: float = 0.0
    status: int | None = None
    answered_after_seconds: float = 0.1
    headers: tuple = ()


def well(draw):
    """Make the task and say so."""
    return Fate(answered_after_seconds=draw.choice((0.0, 0.05, 1.0, 4.0)))


def busy(draw):
    """Make nothing, and say so; at times with a moment to come again."""
    headers = (("retry-after", draw.choice(("1", "7", "40"))),) if draw.random() < 0.5 else ()
    return Fate(made=False, status=draw.choice((503, 408, 425)), headers=headers)


def limiting(draw):
    """Make nothing: too many requests; when to come again may be said absurdly, or not readably."""
    asked = draw.choice(("2", "30", "1000000000", "soon", "Mon, 02 Mar 2026 12:05:00 GMT", None))
    return Fate(made=False, status=429, headers=(("retry-after", asked),) if asked else ())


def wavering(draw):
    """Say that something broke, whether the task was made or not."""
    return Fate(made=draw.random() < 0.5, status=draw.choice((500, 502, 504)), after_seconds=draw.choice((0.0, 3.0)))


def hanging_up(draw):
    """End the connection; the task may be made all the same, also later."""
    return Fate(made=draw.random() < 0.7, after_seconds=draw.uniform(0, AFTER_HANGING_UP_SECONDS), status=0)


def slow(draw):
    """Make the task late, and answer later still, perhaps after the sender's patience."""
    after = draw.uniform(0, LATEST_SECONDS)
    return Fate(after_seconds=after, answered_after_seconds=after + draw.uniform(0, 15))


def silent(_draw):
    """Make the task and give no id."""
    return Fate(status=202)


def gone(_draw):
    """Be out of reach."""
    return Fate(reached=False, made=False)


def refusing(_draw):
    """Take no task."""
    return Fate(made=False, status=422)


def locked(_draw):
    """Take no credential."""
    return Fate(made=False, status=401)


#: What a provider may be like for a while; the first is what it is like in the end.
MOODS = (well, busy, limiting, wavering, hanging_up, slow, silent, gone, refusing, locked)


@dataclass
class Effect:
    """One task that a provider made: by whose mark, when, and under which id."""

    mark: str
    provider: str
    at: float
    external_id: str


def mark_of(request):
    """Return the mark in a request, by which its task is known; nothing when there is none."""
    found = _MARK.search(str(request.json.get("description")))
    return found[1] if found else ""


class Provider:
    """One provider: its stand-in, its mood, and what it made."""

    def __init__(self, name, scheduler, draw, began_at: datetime):
        self.name = name
        self.mood = well
        self.blind = False
        self.effects = []
        self._scheduler = scheduler
        self._draw = draw
        self._began_at = began_at
        self._visible_at = {}
        switches = Switches()
        self._desk = (
            mindhunters.MindhuntersSandbox(switches)
            if name is ProviderName.MINDHUNTERS
            else vambe.VambeSandbox(switches)
        )

    @property
    def now(self):
        """The provider's own clock: nobody's jumps move it."""
        return self._began_at + timedelta(seconds=self._scheduler.now)

    def fate(self, request):
        """Return what becomes of a request."""
        if request.method != "POST":
            return self._fate_of_question()
        if self.mood is not well and self._draw.random() < 0.2:
            return self._draw.choice(MOODS)(self._draw)
        return self.mood(self._draw)

    def _fate_of_question(self):
        if self.blind or (self.mood in (busy, limiting, gone, locked) and self._draw.random() < 0.7):
            return self._draw.choice((Fate(status=503), Fate(status=0), Fate(reached=False), Fate(status=401)))
        return well(self._draw)

    def act(self, request):
        """Do what a request asks for; returns the answer."""
        said = self._said(request)
        if request.method == "POST" and said.task is not None:
            self.effects.append(Effect(mark_of(request), self.name, self._scheduler.now, said.task))
            self._visible_at[said.task] = self._scheduler.now + self._draw.choice((0.0, 0.0, 2.0, LAG_SECONDS))
        return Answered(status=said.status, headers=dict(said.headers), body=json.dumps(said.body).encode())

    def _said(self, request):
        query = {}
        for name, value in request.query:
            query.setdefault(name, []).append(value)
        path = request.path if self.name is ProviderName.MINDHUNTERS else f"/public{request.path}"
        headers = {"authorization": f"Bearer {mindhunters.TOKEN}", "x-api-key": vambe.API_KEY}
        call = SandboxRequest(method=request.method, path=path, query=query, headers=headers, document=request.json)
        if request.method == "POST":
            return self._answer(call)
        everything = self._desk._tasks
        seen = {id_: task for id_, task in everything.items() if self._visible_at[id_] <= self._scheduler.now}
        self._desk._tasks = seen
        try:
            return self._answer(call)
        finally:
            self._desk._tasks = everything

    def _answer(self, call):
        if self.name is ProviderName.MINDHUNTERS:
            return self._desk.answer(call, self.now, self.now)
        return self._desk.answer(call, self.now)


class Line:
    """What `worker.http.HttpClient` is to one process: the way to one provider."""

    def __init__(self, provider, scheduler, draw, began):
        """`began(request)` is told of each request whose first byte leaves."""
        self._provider = provider
        self._scheduler = scheduler
        self._draw = draw
        self._began = began

    def send(self, request, *, deadline_seconds=30.0, may_begin=None):
        """Send a request and say how it ended; whoever sent it may be dead before it has."""
        scheduler = self._scheduler
        connecting = self._draw.choice((0.0, 0.0, 0.0, 0.2, 11.0)) if self._provider.mood is not well else 0.0
        scheduler.sleep(connecting)
        if connecting > deadline_seconds:
            return NeverSent(error="Timeout")
        if may_begin is not None and not may_begin():
            return NotBegun(reason="too late")
        fate = self._provider.fate(request)
        if not fate.reached:
            return NeverSent(error="ConnectionRefused")
        self._began(request)
        answers = []
        if fate.made:
            scheduler.at(scheduler.now + fate.after_seconds, lambda: answers.append(self._provider.act(request)))
        scheduler.sleep(min(fate.answered_after_seconds, deadline_seconds))
        if fate.status == 0 or fate.answered_after_seconds > deadline_seconds:
            scheduler.sleep(deadline_seconds - fate.answered_after_seconds if self._draw.random() < 0.5 else 0.0)
            return NoAnswer(error="Timeout")
        if fate.status is not None:
            return Answered(status=fate.status, headers=dict(fate.headers), body=_complaint(fate.status))
        return answers[0] if answers else NoAnswer(error="ConnectionReset")

    def close(self):
        """Nothing is kept open."""


def _complaint(status):
    """Return a body in the documented form of an error; of a success that tells no id, none."""
    if status < 300:
        return b"{}"
    return json.dumps({"success": False, "statusCode": status, "message": "simulated"}).encode()
