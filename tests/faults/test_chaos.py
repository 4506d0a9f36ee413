"""The chaos run in its short form: real processes, a minute, one seed. The long form is `make chaos`."""

import time

from tests.faults.chaos.events import event_id, expected
from tests.faults.chaos.processes import Process
from tests.faults.chaos.run import Options, run
from tests.faults.chaos.schedule import PROVIDERS, Kind, draw


def test_a_number_gives_the_same_faults_again():
    """The schedule depends on the seed, the length and the kinds, and on nothing else."""
    assert draw(7, 60) == draw(7, 60)
    assert draw(7, 60) != draw(8, 60)
    assert {Kind.STORM} == {fault.kind for fault in draw(7, 60, [Kind.STORM])}
    assert () == draw(7, 60, [])


def test_a_long_schedule_has_every_fault_within_its_time():
    """Each kind comes, at both workers and both providers, after a quiet beginning, and is mended before the end."""
    faults = draw(1, 600)
    assert set(Kind) == {fault.kind for fault in faults}
    assert {0, 1} == {fault.target for fault in faults if fault.kind is Kind.KILL_WORKER}
    assert set(PROVIDERS) == {fault.provider for fault in faults if fault.kind is Kind.STORM}
    assert all(3 <= fault.at_seconds and fault.at_seconds + fault.lasts_seconds <= 600 for fault in faults)
    assert {True, False} == {fault.leave_lease for fault in faults}


def test_what_an_event_becomes_is_known_before():
    """Each event has a call and a team task, some have more; the titles name the event."""
    event = event_id(3, 20)
    assert {"Call evt-3-000020", "Meet evt-3-000020", "Late evt-3-000020", "Again evt-3-000020"} == {
        title for _, title in expected(event)
    }
    assert 2 == len(expected(event_id(3, 1)))


def test_a_process_whose_disk_is_full_can_write_nothing_and_then_again(tmp_path):
    """The full disk of the chaos run is a failing write to the process, and ends when it is told to."""
    script = "while :; do echo x >> out 2>/dev/null && touch wrote || touch failed; sleep 0.02; done"
    process = Process("writer", ["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"}, tmp_path)
    process.start()
    try:
        _until_there(tmp_path / "wrote")
        process.fill_disk(full=True)
        _until_there(tmp_path / "failed")
        process.fill_disk(full=False)
        (tmp_path / "wrote").unlink()
        _until_there(tmp_path / "wrote")
    finally:
        process.kill()
    assert not process.is_alive()


def _until_there(path):
    """Wait until a file is there."""
    give_up_at = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < give_up_at, f"{path.name} never came"
        time.sleep(0.02)


def test_a_short_run_loses_nothing_and_repeats_nothing():
    """Kills, pauses, a full disk, storms: every accepted event has its effects, none twice, and no doubt is left."""
    report = run(Options(seed=9544, seconds=10, settle_seconds=150))
    assert report.holds, report.text()
    assert (0, 0, 0) == (len(report.lost), len(report.doubled), report.unsettled), report.text()
    assert report.history.disturbed
    assert len(report.history.accepted) > 30, report.text()
