from __future__ import annotations

import pytest

from rules.loader import load
from rules.rule_tests import run_rule_tests

AGENT = "11111111-1111-4111-8111-111111111111"
RULE = f"""\
rules:
  - id: big
    when: lead.created
    if: {{data.value: {{gt: 10}}, contact.country: {{in: [CL]}}}}
    then:
      - make_call: {{agent: {AGENT}, title: "Call {{{{ contact.name }}}}", description: "{{{{ data.notes | default('-') }}}}"}}
      - id: follow
        team_task: {{assign: [{AGENT}], due: +2h, timezone: America/Santiago}}
    tests:
"""
BIG = 'contact: {phone: "+56911112222", name: Ana, country: CL}, data: {value: 12}'


def messages(test, now, *, more=""):
    """Return the faults of one test of the rule, as they are printed."""
    rule_set = load({"rules.yaml": f"{RULE}      - {test}\n{more}"}, {})
    return [str(fault) for fault in run_rule_tests(rule_set, now=now)]


def case(given, expect, name="x"):
    """Return a test in one line."""
    return f"{{name: {name}, given: {{{given}}}, expect: {expect}}}"


@pytest.mark.parametrize(
    "expect",
    [
        "[make_call, team_task]",
        "[follow, make_call]",
        "[{make_call: {title: Call Ana, state: planned}}, {follow: {priority: medium}}]",
        "[make_call, {follow: {due_date: '2026-03-02', due_time: '12:00', timezone: America/Santiago}}]",
        "[{make_call: {description: '-', contact: {phone_number: '+56911112222'}}}, team_task]",
        "[{make_call: {due_at: '2026-03-02T13:00:00.000Z'}}, {team_task: {assign: [%s]}}]" % AGENT,  # noqa: UP031
    ],
)
def test_a_test_that_holds_is_silent(expect, now):
    """Tasks are named by type or id, in any order, alone or with some of their fields."""
    assert [] == messages(case(BIG, expect), now)


@pytest.mark.parametrize(
    ("expected", "given", "expect"),
    [
        (
            (
                'expected make_call {"title": "Call Anna"}, team_task; came make_call, team_task `follow`; '
                'make_call has title "Call Ana", not "Call Anna"'
            ),
            BIG,
            "[{make_call: {title: Call Anna}}, team_task]",
        ),
        ("expected make_call; came make_call, team_task `follow`", BIG, "[make_call]"),
        ("expected no task; came make_call, team_task `follow`", BIG, "[]"),
        (
            "expected whatsapp_template, follow; came make_call, team_task `follow`",
            BIG,
            "[whatsapp_template, follow]",
        ),
        (
            "expected make_call, make_call, follow; came make_call, team_task `follow`",
            BIG,
            "[make_call, make_call, follow]",
        ),
        (
            "expected make_call; came no task; data.value: wanted gt 10, saw 9 (rules.yaml:4:23)",
            BIG.replace("12", "9"),
            "[make_call]",
        ),
        (
            'expected make_call; came no task; contact.country: wanted in ["CL"], but it is missing (rules.yaml:4:50)',
            "data: {value: 12}",
            "[make_call]",
        ),
        (
            "expected make_call; came no task; the rule listens to lead.created, and the event is lead.updated",
            "type: lead.updated",
            "[make_call]",
        ),
        (
            (
                'expected make_call {"due": 1}, follow; came make_call, team_task `follow`; '
                "make_call has no field due; did you mean `due_at`?"
            ),
            BIG,
            "[{make_call: {due: 1}}, follow]",
        ),
    ],
)
def test_a_test_that_fails_says_what_differs(expected, given, expect, now):
    """The fault stands at the test, has its name, and says what was expected, what came, and why."""
    assert [f'rules.yaml:10:9: rules.0.tests.0: test "x" fails: {expected}'] == messages(case(given, expect), now)


def test_a_dead_task_counts_only_for_who_expects_it(now):
    """A call that would never be made is no call, unless the test says so."""
    given = "contact: {name: Ana, country: CL}, data: {value: 12}"
    (found,) = messages(case(given, "[make_call, follow]"), now)

    assert "make_call would not be made: dead, no phone" in found
    assert [] == messages(case(given, "[{make_call: {state: dead}}, follow]"), now)


def test_a_misspelt_task_names_the_nearest_one(now):
    """A word that is no task of the rule is told with the one that was meant, else with those there are."""
    (near,) = messages(case(BIG, "[make_call, folow]"), now)
    (far,) = messages(case(BIG, "[make_call, xyz]"), now)

    assert "no task is called folow; did you mean `follow`?" in near
    assert "no task is called xyz; tasks are follow, make_call, mindhunters_task, team_task, whatsapp_template" in far


def test_an_event_may_have_null_and_empty_texts(now):
    """What an event carries where nothing is known may stand in a test."""
    given = (
        "contact: {name: Ana, phone: '+56911112222', email: '', country: CL, timezone: null, consent: null}, "
        "subject: null, attempt: null, changed: null, data: {value: 12}"
    )

    assert [] == messages(case(given, "[make_call, follow]"), now)


def test_entries_are_paired_as_well_as_possible(now):
    """An entry that fits any task leaves the only fitting one to an entry that asks for more."""
    test = case("contact: {phone: '+56911112222'}", "[make_call, {make_call: {title: one}}]")
    text = f"""\
rules:
  - id: two
    when: deal.created
    then:
      - {{id: one, make_call: {{agent: {AGENT}, title: one}}}}
      - {{id: two, make_call: {{agent: {AGENT}, title: two}}}}
    tests:
      - {test}
"""

    assert [] == run_rule_tests(load({"rules.yaml": text}, {}), now=now)


def test_the_moment_and_the_event_can_be_given(now):
    """`at` is when the rule is decided; the event may have happened earlier, under its own id and source."""
    test = """
        name: x
        at: "2026-07-01T10:00:00"
        given:
          type: lead.created
          id: ev_9
          source: web
          subject: {kind: lead, id: "7"}
          occurred_at: "2026-06-30T10:00:00Z"
          received_at: "2026-06-30T10:00:01Z"
          attempt: 1
          changed: {data.stage: {from: a, to: b}}
          contact: {phone: "+56911112222", name: Ana, country: CL}
          data: {value: 12}
        expect: [make_call, {follow: {due_date: "2026-07-01", due_time: "08:00"}}]
"""

    assert [] == messages(test.strip(), now)


def test_a_test_concerns_its_own_rule_only(now):
    """What other rules make of the event does not matter, nor whether one of them stops."""
    other = f"  - {{id: other, when: '*', stop: true, then: [{{make_call: {{agent: {AGENT}}}}}]}}\n"

    assert [] == messages(case(BIG, "[make_call, follow]"), now, more=other)


def test_numbers_texts_and_truth_values_are_told_apart(now):
    """A field must have the very value: 5 is not "5", and true is not 1."""
    text = RULE.replace("{AGENT}", AGENT).replace('title: "Call', 'priority: 1, title: "Call')
    for wanted, expected in (("1", 0), ("1.0", 0), ("'1'", 1), ("true", 1)):
        test = case(BIG, f"[{{make_call: {{priority: {wanted}}}}}, follow]")

        assert expected == len(run_rule_tests(load({"r.yaml": f"{text}      - {test}\n"}, {}), now=now))


def test_a_rule_without_tests_is_no_fault(now):
    """Tests are offered, not demanded."""
    assert [] == run_rule_tests(load({"r.yaml": RULE.removesuffix("    tests:\n")}, {}), now=now)
