"""The chaos run in its short form while the providers answer no question: what is undecided is not sent again."""

from tests.faults.chaos.run import Options, run


def test_a_short_run_with_look_ups_that_fail_repeats_nothing():
    """Nothing is lost and nothing is done twice; tasks in doubt stay so until a person is asked."""
    report = run(Options(seed=3827, seconds=10, look_up=False, settle_seconds=150))
    assert report.holds, report.text()
    assert (0, 0, 0) == (len(report.lost), len(report.doubled), report.unsettled), report.text()
    assert report.history.disturbed
    assert len(report.history.accepted) > 30, report.text()
