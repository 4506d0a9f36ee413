"""A disk that is full, or fails: no webhook is accepted that is not safe, and service resumes by itself."""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.flow.processes import processes_of
from tests.servers.needs import program
from worker.ledger import migrate, open_ledger
from worker.ledger.database import sqlite_module

MNT_DETACH = 2


@pytest.fixture
def small_disk(tmp_path):
    """Give a file system of 20 MB on the home of a line, and a way to fill it; only root may mount one."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"leadwire-test", bytes(home), b"tmpfs", 0, b"size=20m,mode=0700"):
        pytest.skip(f"a small disk cannot be mounted here: {os.strerror(ctypes.get_errno())}")

    @contextmanager
    def full():
        filler = home / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()

    yield full
    libc.umount2(bytes(home), MNT_DETACH)


@pytest.fixture
def no_file_may_grow(own_line):
    """Give a way to have every write of the line's processes fail, which needs no rights at all."""

    @contextmanager
    def full():
        held = {
            pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in processes_of(own_line.home) if _ignores(pid)
        }
        for pid, (_, hard) in held.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
        yield
        for pid, limits in held.items():
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

    return full


def _ignores(pid):
    """Whether a process takes a write beyond its limit as a failure, as Python does, and not as its end."""
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) & (1 << (signal.SIGXFSZ - 1)))


@pytest.mark.parametrize("how", ["small_disk", "no_file_may_grow"])
def test_a_full_disk_is_answered_with_busy_and_heals_by_itself(request, own_line, how):
    """While nothing can be written senders are told to come again; with room again all goes on (experiment 11)."""
    full = request.getfixturevalue(how)
    own_line.start()
    accepted, refused = [], []

    def post():
        event = own_line.event("deal.created", name=uuid.uuid4().hex)
        answer = own_line.post(event, patience_seconds=8)
        (accepted if answer.is_success else refused).append((event["lead"]["name"], answer))
        return answer.is_success

    assert post()
    with full():
        assert own_line.until(lambda: not post())
        assert not post()
    assert own_line.until(post, 15)
    assert {503} == {answer.status_code for _, answer in refused}
    assert all(int(answer.headers["Retry-After"]) > 0 for _, answer in refused)
    wanted = {f"Person {name}" for name, _ in accepted}
    assert own_line.until(lambda: wanted <= {task["title"] for task in own_line.sandbox.tasks("vambe")})
    made = [task["title"] for task in own_line.sandbox.tasks("vambe")]
    assert len(made) == len(set(made))


RECORDER = """
import sys
from datetime import UTC, datetime
from rules.vocabulary import Event, LedgerError
from worker.ledger import Delivery, IncomingEvent, open_ledger

now = datetime(2026, 3, 2, tzinfo=UTC)
ledger = open_ledger(sys.argv[1])
for number in range(12):
    id = f"ev_{number}"
    event = Event(id=id, source="crm", type="lead.created", occurred_at=now, received_at=now, data={"n": number})
    delivery = Delivery(id="dl" + id, source="crm", received_at=now, body=bytes(500), content_hash=id)
    try:
        ledger.inbox.record(delivery, [IncomingEvent(event=event, dedupe_key=id, content_hash=id)])
    except LedgerError:
        print("refused", id, flush=True)
    else:
        print("accepted", id, flush=True)
"""


def test_a_sync_that_fails_is_no_acceptance(tmp_path):
    """When a sync fails with EIO the webhook is refused; what was accepted is there and whole (experiment 12)."""
    strace = program("strace", "strace")
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrate(url)
    # fmt: off
    command = [
        str(strace), "-f", "-qq", "-o", os.devnull, "--seccomp-bpf", "-e", "trace=fsync,fdatasync",
        "-e", "inject=fsync,fdatasync:error=EIO:when=4..6", sys.executable, "-c", RECORDER, url,
    ]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("strace may not follow processes here")
    assert 0 == done.returncode, done.stderr
    said = [line.split() for line in done.stdout.splitlines()]
    accepted = {id_ for word, id_ in said if word == "accepted"}
    assert {"accepted", "refused"} == {word for word, _ in said}
    assert "accepted" == said[-1][0]
    ledger = open_ledger(url)
    stored = {event.id for event in ledger.queries.list_events()}
    ledger.close()
    assert accepted <= stored
    connection = sqlite_module().connect(str(shutil.copy(tmp_path / "ledger.sqlite3", tmp_path / "copy.sqlite3")))
    assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
