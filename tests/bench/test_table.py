"""The table: what a ratio is, what a spread is, and what is left out."""

from bench.table import by_role, table


def _result(system, number, **values):
    counts = dict.fromkeys(("accepted", "lost", "doubled", "refused"), 10)
    return {"system": system, "round": number, "not_recorded": None, "not_delivered": None, **counts, **values}


RESULTS = [
    _result("naive", 0, ingest_per_s=100, cold_s=2.0, cpu_ms_by_role={"worker": 1.0}),
    _result("leadwire", 0, ingest_per_s=1000, cold_s=1.0, cpu_ms_by_role={"worker": 0.25, "ingress": 0.5}),
    _result("naive", 1, ingest_per_s=200, cold_s=2.0),
    _result("leadwire", 1, ingest_per_s=400, cold_s=1.0),
    _result("naive", 2, ingest_per_s=300, cold_s=2.0),
    _result("leadwire", 2, ingest_per_s=900, cold_s=3.0),
]


def _row(text, title):
    return next(line for line in text.splitlines() if line.startswith(f"| {title} "))


def test_a_ratio_is_the_median_of_ratios_within_a_round():
    """Rounds of 10x, 2x and 3x are 3x, whatever the medians of both are."""
    text = table(RESULTS, ["naive", "leadwire"], "naive")
    expected = "| ingest, events/s | 200 (100-300) | 900 (400-1,000) | **3.00x** (2.00-10.00) | more |"
    assert expected == _row(text, "ingest, events/s")
    assert "**0.50x** (0.50-1.50) | less |" in _row(text, "cold start to the first task, s")


def test_what_was_not_measured_is_left_out():
    """A row without any figure is not shown; counts that a system cannot have are a dash, others are summed."""
    text = table(RESULTS, ["naive", "leadwire"], "naive")
    assert "p99" not in text
    assert "| of them not on disk | - | - |  |  |" == _row(text, "of them not on disk")
    assert "| events answered with 2xx | 30 | 30 |  |  |" == _row(text, "events answered with 2xx")


def test_one_system_has_no_ratio():
    """Measured alone, Leadwire has its figures and nothing beside them."""
    text = table([one for one in RESULTS if one["system"] == "leadwire"], ["leadwire"], "naive")
    assert "| ingest, events/s | 900 (400-1,000) | more |" == _row(text, "ingest, events/s")


def test_cpu_is_told_by_role():
    """Each kind of process has its share, in a fixed order."""
    assert "CPU ms per event, leadwire: ingress 0.50, worker 0.25" == by_role(RESULTS, "leadwire")[0]
