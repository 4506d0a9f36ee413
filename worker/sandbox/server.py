"""The sandbox as a server: one port for both providers, for the faults, and for the page.

Everything it holds is behind one lock; the HTTP below it is `worker/sandbox/wires.py`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from rules.vocabulary import Json
from worker.sandbox.calls import Call, Said
from worker.sandbox.faults import Misdeed, Script
from worker.sandbox.mindhunters import TOKEN, Mindhunters
from worker.sandbox.page import SHOWN, page
from worker.sandbox.records import REQUEST_LIMIT, Records
from worker.sandbox.switches import SandboxError, Switches
from worker.sandbox.vambe import API_KEY, Vambe
from worker.sandbox.wires import MINDHUNTERS_ROOT, VAMBE_ROOT, Server

MINDHUNTERS_TOKEN: Final = TOKEN
VAMBE_API_KEY: Final = API_KEY


def _machine_clock() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - a stand-in for somebody else's machine has a clock of its own


class Sandbox:
    """Both providers on one port of this machine; a context manager, or `start()` and `stop()`.

    `port` 0 takes a free one. `switches` are values of `worker.sandbox.switches.SWITCHES`, `faults` a script as in
    `worker.sandbox.faults`. Raises SandboxError when one of them is not understood or the port is taken.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        switches: Mapping[str, str] | None = None,
        faults: Json = (),
        clock: Callable[[], datetime] = _machine_clock,
    ) -> None:
        self._host, self._port, self._clock = host, port, clock
        self._lock = threading.Lock()
        self._switches = Switches(switches)
        self._script = Script()
        self._script.add(faults)
        self._server: Server | None = None
        self._closing = threading.Event()
        self._empty()

    def _empty(self) -> None:
        self._mindhunters, self._vambe = Mindhunters(self._switches), Vambe(self._switches)
        self._records, self._ahead = Records(), timedelta()

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Serve, in threads of its own."""
        try:
            self._server = Server((self._host, self._port), self)
        except (OSError, OverflowError) as exc:
            raise SandboxError(
                f"the sandbox cannot have port {self._port} of {self._host}: {exc}; choose another"
            ) from exc
        self._port = self._server.server_address[1]
        self._closing.clear()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="sandbox", daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse and drop every connection from now on. Another `start()` takes the same port and keeps what is held."""
        self._closing.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.drop_connections()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it serves on."""
        return self._port

    @property
    def url(self) -> str:
        """Where its page is."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def mindhunters_url(self) -> str:
        """The value for LEADWIRE_MINDHUNTERS_URL."""
        return f"{self.url}{MINDHUNTERS_ROOT}"

    @property
    def vambe_url(self) -> str:
        """The value for LEADWIRE_VAMBE_URL."""
        return f"{self.url}{VAMBE_ROOT}/public"

    # -- what tests and the control address ask and tell ----------------------------------------------------------

    def tasks(self, provider: str) -> list[dict[str, Json]]:
        """Return the tasks a provider holds, oldest first, as the page shows them."""
        with self._lock:
            return self._mindhunters.tasks(self._tasks_now()) if provider == "mindhunters" else self._vambe.tasks()

    def state(self, limit: int = REQUEST_LIMIT) -> dict[str, Json]:
        """Return everything: tasks of both, contacts, requests, refusals, counts, faults, switches; the newest of each."""
        with self._lock:
            calls, team = self._mindhunters.tasks(self._tasks_now()), self._vambe.tasks()
            state: dict[str, Json] = {
                "mindhunters": {"tasks": calls[-limit:], "contacts": self._mindhunters.contacts()[-limit:]},
                "vambe": {"tasks": team[-limit:]},
                **self._records.as_json(limit),
                "faults": self._script.as_json(),
                "switches": self._switches.as_json(),
            }
            state["counts"] |= {"mindhunters_tasks": len(calls), "vambe_tasks": len(team)}
            return state

    def script(self, faults: Json) -> None:
        """Add faults; raises SandboxError for a script it does not understand."""
        with self._lock:
            self._script.add(faults)

    def behave(self) -> None:
        """Take all faults out of force."""
        with self._lock:
            self._script.clear()

    def turn(self, switches: Mapping[str, str]) -> None:
        """Turn switches; raises SandboxError for one it does not know."""
        with self._lock:
            self._switches.turn(switches)

    def advance(self, span: timedelta) -> None:
        """Let this much time pass in the lives of Mindhunters' tasks; the clock that checks requests does not move."""
        with self._lock:
            self._ahead += span

    def move(self, task: str, status: str) -> None:
        """Put one Mindhunters task into a status; raises SandboxError for an unknown task or status."""
        with self._lock:
            if not self._mindhunters.move(task, status, self._tasks_now()):
                raise SandboxError(f"there is no task {task!r} or no status {status!r}")

    def reset(self) -> None:
        """Forget tasks, requests, faults and moved time; switches stay as they are."""
        with self._lock:
            self._script.clear()
            self._empty()

    def answer(self, provider: str, call: Call) -> tuple[Said | None, Misdeed | None]:
        """Take one provider call: execute it unless a fault forbids, and say what to answer and how to misbehave."""
        with self._lock:
            now = self._clock()
            misdeed = self._script.take(provider, call)
            said: Said | None = None
            if misdeed is None or misdeed.executes:
                if provider == "mindhunters":
                    said = self._mindhunters.answer(call, now, now + self._ahead)
                else:
                    said = self._vambe.answer(call, now)
            if misdeed is not None and misdeed.status is not None:
                said = Said(
                    status=misdeed.status,
                    body=misdeed.body,
                    headers=misdeed.headers,
                    task=said.task if said else None,
                )
            self._records.note(provider, call, said, _fault_words(misdeed), now)
        return said, misdeed

    def page(self) -> str:
        """Return the page."""
        return page(self.state(SHOWN), self.mindhunters_url, self.vambe_url)

    def wait(self, seconds: float) -> None:
        """Let time pass, but not beyond `stop()`."""
        self._closing.wait(seconds)

    def control(self, call: Call) -> tuple[int, Json]:
        """Take one call to `/_sandbox/...`: status and JSON."""
        limit = call.last("limit")
        document = call.document
        match call.method, call.path:
            case "GET", "/state":
                return 200, self.state(int(limit) if limit.isdecimal() and 0 < len(limit) < 7 else REQUEST_LIMIT)  # noqa: PLR2004
            case "POST", "/faults":
                self.script(document)
            case "DELETE", "/faults":
                self.behave()
            case "POST", "/reset":
                self.reset()
            case "POST", "/switches" if isinstance(document, dict):
                self.turn({str(name): str(value) for name, value in document.items()})
            case "POST", "/clock" if isinstance(document, dict):
                self._clock_control(document)
            case _:
                return 404, {"error": f"no {call.method} /_sandbox{call.path} with such a body"}
        return 200, {"faults": self._script.as_json()}

    def _clock_control(self, document: Mapping[str, Json]) -> None:
        seconds = document.get("advance_seconds", 0)
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds <= 366 * 86_400:
            raise SandboxError(f"advance_seconds must be a number from 0 to a year, not {seconds!r}")
        self.advance(timedelta(seconds=seconds))
        if "task" in document:
            self.move(str(document["task"]), str(document.get("status")))

    def _tasks_now(self) -> datetime:
        return self._clock() + self._ahead


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    script_file: Path | None = None,
    switches: Mapping[str, str] | None = None,
    *,
    announce: Callable[[Sandbox], None] = lambda _: None,
    until: threading.Event | None = None,
) -> None:
    """Serve until `until` is set or the process is interrupted; `announce` is told once the port is open.

    `script_file` holds faults as a JSON list. Raises SandboxError, naming file, switch or port.
    """
    faults: Json = ()
    if script_file is not None:
        try:
            faults = json.loads(script_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as exc:
            raise SandboxError(f"{script_file}: cannot be read as JSON: {exc}") from exc
    with Sandbox(port, host=host, switches=switches, faults=faults) as sandbox:
        announce(sandbox)
        with suppress(KeyboardInterrupt):
            (until or threading.Event()).wait()


def _fault_words(misdeed: Misdeed | None) -> str | None:
    if misdeed is None:
        return None
    words = [f"hang up {misdeed.hang_up}"] if misdeed.hang_up else []
    words += [f"status {misdeed.status}{' after storing' if misdeed.store else ''}"] if misdeed.status else []
    words += [f"delay {misdeed.delay_seconds:g} s"] if misdeed.delay_seconds else []
    words += ["drip"] if misdeed.drip_seconds else []
    return ", ".join(words)
