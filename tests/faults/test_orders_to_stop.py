"""Processes that are told to stop under load, as an upgrade does: running calls end, and nobody is left in doubt."""

from tests.faults.chaos.run import Options, run
from tests.faults.chaos.schedule import Kind


def test_workers_and_ingress_that_are_stopped_under_load_leave_no_doubt():
    """SIGTERM to each of them, again and again: all is delivered once, nothing is unknown (experiment 20)."""
    report = run(Options(seed=3, seconds=10, kinds=(Kind.STOP_WORKER, Kind.STOP_INGRESS), settle_seconds=60))
    assert report.holds, report.text()
    assert len(report.history.disturbed) > 1
    assert {"delivered"} == {touch.state for touch in report.history.touches}, report.text()
    assert report.wanted == {(effect.provider, effect.title) for effect in report.history.effects}
