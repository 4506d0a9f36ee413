"""How things are put into words and tables."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from console.cli.output import as_json, counted, decision_lines, person, printable, table, to_json
from rules.vocabulary import Contact, Decision, DecisionOutcome, FailedTest

PLACE = "rules.yaml:3:5"


def _left_alone(failed: FailedTest) -> Decision:
    return Decision(
        rule="high-value-lead",
        outcome=DecisionOutcome.NOT_MATCHED,
        reason="a test failed",
        failed=failed,
        place=PLACE,
    )


def test_a_failed_test_is_told_with_both_values() -> None:
    """A rule that did not match names itself, the test that failed, the value seen and the value wanted."""
    failed = FailedTest(
        path="data.value", operator="gt", wanted=10000, seen=9000, missing=False, place="rules.yaml:6:9"
    )

    text = "\n".join(decision_lines(_left_alone(failed)))

    assert "rule high-value-lead: left alone" in text
    assert "failing test  data.value gt 10000   [rules.yaml:6:9]" in text
    assert "value seen    9000" in text
    assert "value wanted  gt 10000" in text


def test_a_number_and_its_text_look_different() -> None:
    """Values are written as JSON, so that "9000" is not mistaken for 9000."""
    failed = FailedTest(path="data.value", operator="eq", wanted=9000, seen="9000", missing=False, place=PLACE)

    assert '    value seen    "9000"' in decision_lines(_left_alone(failed))


def test_a_missing_field_is_called_missing() -> None:
    """A field that is absent or null is told as missing, not as null."""
    failed = FailedTest(path="data.value", operator="gt", wanted=1, seen=None, missing=True, place=PLACE)

    assert "    value seen    missing (absent or null)" in decision_lines(_left_alone(failed))


def test_a_match_counts_its_tasks() -> None:
    """A rule that matched says how many tasks it led to."""
    decision = Decision(rule="r", outcome=DecisionOutcome.MATCHED, reason="", tasks=("tk_1", "tk_2"), place=PLACE)

    assert [f"rule r: matched, 2 tasks   [{PLACE}]"] == decision_lines(decision)


def test_a_stopped_rule_gives_its_reason() -> None:
    """A rule that an earlier one stopped says so in the decision's own words."""
    decision = Decision(rule="r", outcome=DecisionOutcome.STOPPED, reason="rule a said stop", place=PLACE)

    assert "    why           rule a said stop" in decision_lines(decision)


@given(st.text())
def test_printed_text_cannot_steer_the_terminal(text: str) -> None:
    """Whatever a payload holds, what is printed of it has no control characters."""
    assert printable(text).isprintable()


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=150), st.text(max_size=150)), max_size=5))
def test_a_table_fits_the_screen(rows: list[tuple[str, str, str]]) -> None:
    """No line of a table is longer than a hundred columns, whatever its cells hold; what is printed is printable."""
    lines = table(("first", "second", "third"), rows, whole=0, remarks=[row[1] for row in rows]).split("\n")

    assert len(rows) + 2 <= len(lines)
    assert all(line.isprintable() for line in lines)
    # A combining mark takes no column of its own.
    assert all(100 >= sum(not unicodedata.combining(one) for one in line) for line in lines)


def test_a_wide_cell_ends_in_an_ellipsis_and_an_id_stays_whole() -> None:
    """A cell that had to be cut says so; the first column is there to be copied and is never cut."""
    line = table(("id", "b"), [("x" * 60, "y" * 60)]).split("\n")[-1]

    assert "x" * 60 + "  " + "y" * 37 + "…" == line


def test_a_remark_stands_below_its_row() -> None:
    """Why a row is as it is stands below it, where there is something to say."""
    lines = table(("a", "b"), [("1", "2"), ("3", "4")], remarks=["", "because"]).split("\n")

    assert ["1  2", "3  4", "  because"] == lines[2:]


def test_documents_are_ascii() -> None:
    """A JSON document is plain ASCII, so that no terminal's encoding can break it."""
    text = to_json({"name": "José \udc80"})

    assert text.isascii()
    assert json.loads(text) == {"name": "José \udc80"}


def test_long_values_are_cut() -> None:
    """A huge value does not fill the screen of an explanation."""
    assert len(as_json("x" * 5000)) == 300


def test_counts_and_people_read_well() -> None:
    """One task, two tasks; a contact is its name and how it is reached."""
    assert ("1 task", "2 tasks") == (counted(1, "task"), counted(2, "task"))
    assert person(Contact(name="Ana", phone="+56911112222")) == "Ana +56911112222"
    assert person(Contact()) == "-"
