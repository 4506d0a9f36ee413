"""The demo's own `leadwire up`: a child process with a folder, ports and credentials of its own, which dies with the demo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from console import local_broker
from console.supervisor import free_port
from ingress.processes import dies_with_me
from rules.vocabulary import Problem
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox
from worker.settings import PREFIX

#: `up` ends its children in order within 30 seconds.
STOP_SECONDS: Final = 35.0
LOOK_SECONDS: Final = 0.05
LOG_LINES: Final = 12


@dataclass(slots=True, kw_only=True)
class House:
    """One `leadwire up` below the demo's folder."""

    folder: Path
    sandbox: Sandbox
    variables: Mapping[str, str]
    url: str = ""
    public_url: str = ""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def rules(self) -> Path:
        """The example rules of this installation."""
        return Path(str(files("rules").joinpath("examples")))

    @property
    def home(self) -> Path:
        """The data folder."""
        return self.folder / "home"

    @property
    def ledger_url(self) -> str:
        """Where the ledger is."""
        return f"sqlite:///{self.home / 'ledger.sqlite3'}"

    def start(self, give_up_at: float, while_waiting: Callable[[], None]) -> None:
        """Start `leadwire up` and wait until it is ready; raises Problem when it ends or time is up."""
        port = free_port()
        self.public_url = f"http://127.0.0.1:{port}"
        self.home.mkdir(mode=0o700)
        # -P: the folder we stand in is no place to import from.
        command = [sys.executable, "-P", "-m", "console.cli", "up"]
        with self._log("up").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                dies_with_me(command),
                cwd=self.folder,
                env=self._environment(port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which stops `up` in order
            )
        while not (self.home / "up.json").exists():
            self.check_alive()
            if time.monotonic() > give_up_at:
                raise Problem("`leadwire up` is not ready in time")
            while_waiting()
            time.sleep(LOOK_SECONDS)
        self.url = str(json.loads((self.home / "up.json").read_bytes())["url"])

    def check_alive(self) -> None:
        """Raise Problem when `leadwire up` has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise Problem(f"`leadwire up` ended with {self._process.returncode}")

    def stop(self) -> None:
        """Stop `leadwire up` and all it started."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        socket_folder = local_broker.socket_path(self.home).parent
        if not socket_folder.is_relative_to(self.home):  # where the data folder's path is too long for a socket
            shutil.rmtree(socket_folder, ignore_errors=True)

    def tail(self) -> str:
        """Return the last lines of every log."""
        logs = [self._log("up"), *sorted((self.home / "logs").glob("*.log"))]
        parts = []
        for path in logs:
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            if lines:
                parts.append("\n".join([f"--- {path.relative_to(self.folder)}", *lines[-LOG_LINES:]]))
        return "\n".join(parts) or "(no log lines)"

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _environment(self, port: int) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        own = {
            "HOME": str(self.home),
            "RULES": str(self.rules),
            "PORT": str(port),
            "OPERATOR_PORT": "0",
            "FLOWER_PORT": "0",
            "PUBLIC_URL": self.public_url,
            "MINDHUNTERS_URL": self.sandbox.mindhunters_url,
            "MINDHUNTERS_TOKEN": MINDHUNTERS_TOKEN,
            "VAMBE_URL": self.sandbox.vambe_url,
            "VAMBE_API_KEY": VAMBE_API_KEY,
        }
        return {**inherited, **self.variables, **{PREFIX + name: value for name, value in own.items()}}
