"""A page as a person sees it: in Debian's chromium, without a window, after its scripts have run."""

import os
import re
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

from ingress.processes import dies_with_me
from tests.servers.needs import program

#: How long a page's scripts may take, by the page's own clock.
BUDGET_MILLISECONDS = 8000


class Browser:
    """One headless browser after another; `auth` is the user and password of every page."""

    def __init__(self, base: str, auth: tuple[str, str]) -> None:
        self.program = program("chromium", "chromium", "chromium-browser", "google-chrome")
        self.base = base.replace("://", f"://{auth[0]}:{auth[1]}@")

    def dom(self, path: str) -> str:
        """Return the page's document when its scripts are done."""
        return self._run(path, "--dump-dom").stdout.decode()

    def picture(self, path: str, file: Path, size: str = "1500,900") -> None:
        """Write a picture of the page."""
        self._run(path, f"--window-size={size}", f"--screenshot={file}")

    def _run(self, path: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            flags = [
                "--headless",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
            ]
            flags += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server"]
            flags += [f"--user-data-dir={folder}", f"--virtual-time-budget={BUDGET_MILLISECONDS}"]
            if os.geteuid() == 0:
                flags.append("--no-sandbox")  # the browser refuses to be root's within it
            command = dies_with_me([str(self.program), *flags, *options, self.base + path])
            environment = {"HOME": folder, "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
            return subprocess.run(command, env=environment, capture_output=True, check=True, timeout=90)


def table(dom: str) -> dict[str, list[str]]:
    """Return the rows of a page's table by the row's id: the text of each cell."""
    reader = _Rows()
    reader.feed(dom)
    return reader.rows


class _Rows(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self._cells: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            row_id = dict(attrs).get("id")
            self._cells = self.rows.setdefault(row_id, []) if row_id else None
        elif tag == "td" and self._cells is not None:
            self._cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self._cells = None

    def handle_data(self, data: str) -> None:
        if self._cells:
            self._cells[-1] = re.sub(r"\s+", " ", self._cells[-1] + data)
