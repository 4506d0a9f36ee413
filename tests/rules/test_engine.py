"""What an event leads to."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rules.conditions import compile_conditions
from rules.engine import decide, task_key
from rules.rule_set import Action, Defaults, DueDate, Member, Rule, RuleSet, Team
from rules.templates import compile_template, is_template
from rules.times import parse_at
from rules.vocabulary import Contact, DecisionOutcome, Event, EventState, RetryPolicy, TaskState, TaskType
from rules.yaml_reader import SourceMap

NOW = datetime(2026, 3, 2, 13, 0, 30, tzinfo=UTC)
ANA = Contact(name="Ana", phone="+56911112222", email="ana@acme.example", country="CL")
CLOSERS = Team(name="closers", members=(Member(name="Ana", id="u1"), Member(name="Luis", id="u2")))
IN_TURN = replace(CLOSERS, name="turns", by="round_robin", timezone="America/Lima")


def dynamic(value):
    """Return a value with its template texts compiled, as a rule file's reader does."""
    if isinstance(value, dict):
        return {key: dynamic(item) for key, item in value.items()}
    if isinstance(value, list):
        return [dynamic(item) for item in value]
    if isinstance(value, str) and is_template(value):
        template = compile_template(value, SourceMap("rules.yaml"), ())
        assert template is not None
        return template
    return value


def call(name="make_call", type_=TaskType.MAKE_CALL, **body):
    """Return an action for Mindhunters."""
    special = {key: body.pop(key) for key in ("at", "expires", "timezone", "retry", "if_unsure") if key in body}
    body = {"agent": "agent-1", **body}
    if isinstance(special.get("at"), str):
        special["at"] = dynamic(special["at"]) if is_template(special["at"]) else parse_at(special["at"])
    special["timezone"] = dynamic(special.get("timezone"))
    return Action(name=name, type=type_, place="rules.yaml:9:9", body=dynamic(body), **special)


def team_task(name="team_task", assign=("u1",), due=None, timezone=None, **body):
    """Return an action for the team."""
    return Action(
        name=name,
        type=TaskType.TEAM_TASK,
        place="rules.yaml:9:9",
        assign=dynamic(assign) if isinstance(assign, str) else assign,
        due=dynamic(due),
        timezone=dynamic(timezone),
        body=dynamic(body),
    )


def rule(*actions, name="rule", when=("lead.created",), if_=None, file="rules.yaml", **more):
    """Return a rule that makes these tasks."""
    test = compile_conditions(if_, SourceMap(file), ())
    return Rule(id=name, description=more.pop("description", None), when=when, condition=test, actions=actions, file=file,
                place=f"{file}:3:5", **more)  # fmt: skip


def rule_set(*rules, defaults=None):
    """Return a rule set of these rules."""
    return RuleSet(
        version="rs_1",
        rules=rules,
        defaults=defaults or Defaults(),
        teams={"closers": CLOSERS, "turns": IN_TURN},
        sources=(),
        warnings=(),
        files={},
    )


def event(contact=ANA, data=None, **more):
    """Return a new lead."""
    return Event(**{
        "id": "ev_1", "source": "crm", "type": "lead.created", "occurred_at": NOW - timedelta(minutes=1),
        "received_at": NOW, "contact": contact, "data": data, **more,
    })  # fmt: skip


def planned(action, contact=ANA, data=None, defaults=None, **more):
    """Return the only task that an event leads to."""
    plan = decide(rule_set(rule(action, **more), defaults=defaults), event(contact, data), now=NOW)
    (task,) = plan.tasks
    return task


# Decisions


def test_every_listening_rule_gets_a_decision_in_order():
    """Matched and not matched stand in the order of the rules; rules that do not listen are not there."""
    rules = rule_set(
        rule(call(), name="first", if_={"data.value": {"gt": 10}}),
        rule(call(), name="deaf", when=("deal.*",)),
        rule(call(), name="second", when=("lead.*",)),
    )
    plan = decide(rules, event(data={"value": 5}), now=NOW)
    assert EventState.PROCESSED is plan.state
    assert [("first", DecisionOutcome.NOT_MATCHED), ("second", DecisionOutcome.MATCHED)] == [
        (decision.rule, decision.outcome) for decision in plan.decisions
    ]
    assert "data.value: wanted gt 10, saw 5" == plan.decisions[0].reason
    assert 5 == plan.decisions[0].failed.seen
    assert plan.decisions[1].tasks == tuple(task.id for task in plan.tasks)


def test_an_event_nobody_listens_to_is_ignored():
    """No rule covers the type: no decision, no task."""
    plan = decide(rule_set(rule(call(), when=("deal.*",))), event(), now=NOW)
    assert (EventState.IGNORED, (), ()) == (plan.state, plan.decisions, plan.tasks)


def test_stop_ends_the_rules_after_it_in_its_file():
    """Later rules of the same file are stopped and say by whom; those of other files are decided."""
    rules = rule_set(
        rule(call(), name="a", stop=True),
        rule(call(), name="b"),
        rule(call(), name="c", file="other.yaml"),
    )
    plan = decide(rules, event(), now=NOW)
    assert ["matched", "stopped", "matched"] == [decision.outcome for decision in plan.decisions]
    assert "stopped by rule a" in plan.decisions[1].reason


@pytest.mark.parametrize("contact", [Contact(), ANA])
def test_stop_holds_only_where_a_task_is_made(contact):
    """A rule that did not match, or whose only task is dead in planning, stops nothing."""
    first = rule(call(), name="a", stop=True, if_=None if contact is not ANA else {"data.absent": 1})
    plan = decide(rule_set(first, rule(team_task(), name="b")), event(contact), now=NOW)
    assert DecisionOutcome.MATCHED is plan.decisions[1].outcome


def test_the_moment_of_processing_is_now_in_conditions_and_templates():
    """`older_than` and `{{ now }}` count from the moment that is handed in."""
    made = planned(call(title="{{ now }}"), data={"at": "2026-03-01"}, if_={"data.at": {"older_than": "1d"}})
    assert "2026-03-02T13:00:30.000Z" == made.fields["title"]


def test_an_error_in_one_rule_does_not_stop_the_others():
    """A rule that fails unexpectedly becomes a decision with the error."""

    def fail(_):
        raise RecursionError("too deep")

    plan = decide(rule_set(replace(rule(call(), name="a"), condition=fail), rule(call(), name="b")), event(), now=NOW)
    assert "this rule could not be decided: RecursionError: too deep" == plan.decisions[0].reason
    assert ["b"] == [task.rule for task in plan.tasks]


# Keys and texts


def test_a_key_names_event_rule_and_task_for_ever():
    """The same three give the same key; each of them changes it; the id is its beginning."""
    made = planned(call("call"))
    assert task_key("ev_1", "rule", "call") == made.key
    assert f"tk_{made.key[:20]}" == made.id
    assert 64 == len(made.key)
    assert 4 == len(
        {task_key(*names) for names in [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a", "b", "d")]}
    )


@pytest.mark.parametrize(
    ("expected", "title"),
    [
        ("Call Ana", "Call {{ contact.name }}"),
        ("12", "{{ data.n }}"),
        ("a b", " a\n\tb\x00 "),
        ("x" * 200, "{{ data.long }}"),
        ("From the rule", "{{ data.blank }}"),
        ("From the rule", None),
    ],
)
def test_a_title_is_one_clean_line_of_200_characters(expected, title):
    """Without a title, or with an empty one, the rule's description stands there."""
    data = {"n": 12, "long": "x" * 5_000, "blank": " \x00\n"}
    assert expected == planned(call(title=title), data=data, description="From the rule").fields["title"]


def test_without_description_the_title_is_the_rules_id():
    """A rule with nothing but an id still makes tasks with a title."""
    assert "rule" == planned(team_task()).fields["title"]


@pytest.mark.parametrize("action", [call, team_task])
@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("Hello ", "Hello"),
        ("", None),
        ("", " "),
        ("a\nb\tc\nd ", "a\r\nb\tc\u2028d\x1b\u202e\ud800"),
        ("x" * 1_982 + " ", "x" * 5_000),
    ],
)
def test_a_description_ends_in_the_mark_of_its_task(expected, text, action):
    """Control characters go, line breaks stay, and the mark is whole at the end of 2,000 characters."""
    made = planned(action(description=text))
    assert f"{expected}[lw:{made.key[:12]}]" == made.fields["description"]
    assert 2_000 >= len(made.fields["description"])


def test_a_missing_name_ends_that_task_alone():
    """The task is dead with the name that was missing; the others of the rule are planned."""
    rules = rule_set(rule(call(title="Call {{ contact.email }}", priority="{{ data.absent }}"), team_task()))
    plan = decide(rules, event(replace(ANA, email=None)), now=NOW)
    dead, alive = plan.tasks
    assert (TaskState.DEAD, TaskState.PLANNED) == (dead.state, alive.state)
    assert "title: contact.email is missing" in dead.reason
    assert "priority: data.absent is missing" in dead.reason
    assert "make_call (dead: " in plan.decisions[0].reason


# Mindhunters


def test_a_call_says_what_is_known():
    """The defaults: the event's phone, queued at once, now, in the contact's only zone; nothing that was not asked for."""
    made = planned(call(), defaults=Defaults(country_zones={"CL": "America/Santiago"}))
    assert {
        "agent": "agent-1",
        "title": "rule",
        "description": f"[lw:{made.key[:12]}]",
        "auto_queue": True,
        "contact": {"phone_number": "+56911112222"},
        "timezone": "America/Santiago",
    } == made.fields
    assert (NOW, None, ANA, TaskState.PLANNED, "mindhunters") == (
        made.due_at,
        made.expires_at,
        made.contact,
        made.state,
        made.provider,
    )


def test_all_other_keys_of_a_task_go_through_rendered():
    """Types are kept: numbers stay numbers, mappings stay mappings with their texts rendered."""
    made = planned(
        call(
            type_=TaskType.MINDHUNTERS_TASK,
            type="survey",
            task_data={"questions": ["{{ data.q }}"], "n": 1},
            priority="{{ data.priority }}",
            redial={"max": 3},
            campaign="c-1",
            auto_queue=False,
            extra_fields={"x": "{{ data.q }}"},
            retry=RetryPolicy(max_attempts=9),
            if_unsure="repeat",
        ),
        data={"q": "why\x00?", "priority": 8},
    )
    assert ({"questions": ["why?"], "n": 1}, 8, {"max": 3}, "c-1", False, {"x": "why?"}, "survey") == tuple(
        made.fields[key]
        for key in ("task_data", "priority", "redial", "campaign", "auto_queue", "extra_fields", "type")
    )
    assert (9, "repeat") == (made.retry.max_attempts, made.if_unsure)


@pytest.mark.parametrize("type_", [TaskType.MAKE_CALL, TaskType.WHATSAPP_TEMPLATE])
def test_without_phone_and_contact_uuid_a_call_is_dead_at_once(type_):
    """No request will be made: the reason begins with "no phone"."""
    made = planned(call(type_=type_), contact=replace(ANA, phone=None))
    assert TaskState.DEAD is made.state
    assert made.reason.startswith("no phone: ")


def test_a_contact_uuid_wins_and_no_contact_is_told():
    """Exactly one of the two is in the fields."""
    made = planned(call(contact_uuid="{{ data.mh }}", contact={"phone_number": "+1"}), Contact(), {"mh": "uuid-1"})
    assert "uuid-1" == made.fields["contact_uuid"]
    assert "contact" not in made.fields
    assert TaskState.PLANNED is made.state


def test_an_empty_contact_uuid_is_none():
    """A default of nothing falls back to the contact."""
    made = planned(call(contact_uuid="{{ data.mh | default('') }}"))
    assert {"phone_number": "+56911112222"} == made.fields["contact"]
    assert "contact_uuid" not in made.fields


def test_another_task_does_with_an_email():
    """Only calls and WhatsApp templates need a phone; with neither phone nor e-mail nobody can be reached."""
    made = planned(call(type_=TaskType.MINDHUNTERS_TASK, type="send_email"), contact=replace(ANA, phone=None))
    assert {"email": "ana@acme.example"} == made.fields["contact"]
    dead = planned(call(type_=TaskType.MINDHUNTERS_TASK, type="send_email"), contact=Contact(country="CL"))
    assert "nobody to reach" in dead.reason


def test_a_rule_can_name_another_contact():
    """The task then has that contact, and the zone of its phone."""
    made = planned(call(contact={"phone_number": "{{ data.boss }}", "email": "{{ data.mail | default('') }}"}),
                   data={"boss": "+51999999999"})  # fmt: skip
    assert {"phone_number": "+51999999999"} == made.fields["contact"]
    assert Contact(phone="+51999999999") == made.contact
    assert "America/Lima" == made.fields["timezone"]


@pytest.mark.parametrize(
    ("expected", "phone"),
    [
        ("+56911112222", "9 1111 2222"),
        ("+56911112222", "+56 9 1111 2222"),
        (None, "12"),
        (None, "call me"),
        (None, "+5"),
    ],
)
def test_a_phone_becomes_e164_with_the_contacts_country_or_the_task_is_dead(expected, phone):
    """What cannot be a number is told with its value."""
    made = planned(call(contact={"phone_number": phone}))
    assert expected == made.fields["contact"].get("phone_number")
    if expected is None:
        assert made.reason.startswith(f"no phone: contact.phone_number is {json.dumps(phone)}")


@pytest.mark.parametrize(
    ("due_at", "at"),
    [
        ("2026-03-02T13:00:30Z", None),
        ("2026-03-02T13:15:30Z", "+15m"),
        ("2026-03-03T12:00:00Z", "next 09:00"),
        ("2026-03-02T20:00:00Z", "{{ data.callback_at }}"),
        ("2026-03-02T13:10:30Z", "{{ '+10m' }}"),
        ("2026-03-02T13:00:30Z", "2020-01-01"),
    ],
)
def test_at_says_when(due_at, at):
    """Spans from now, the contact's own clock, and what a template gives; the past is now."""
    defaults = Defaults(country_zones={"CL": "America/Santiago"})
    made = planned(call(at=at), data={"callback_at": "2026-03-02T17:00"}, defaults=defaults)
    assert datetime.fromisoformat(due_at) == made.due_at


@pytest.mark.parametrize(
    ("note", "contact", "more"),
    [
        ("zone America/Santiago from country_zones (CL)", ANA, {}),
        ("zone Asia/Tokyo from the task's timezone", ANA, {"timezone": "Asia/Tokyo"}),
        ("no zone is known for the contact; Europe/Madrid was assumed", Contact(email="a@b.example"), {}),
    ],
)
def test_the_zone_that_was_used_is_told(note, contact, more):
    """A time of day leaves a note, in the task and in the decision."""
    defaults = Defaults(timezone="Europe/Madrid", country_zones={"CL": "America/Santiago"})
    action = call(type_=TaskType.MINDHUNTERS_TASK, type="survey", at="next 09:00", **more)
    plan = decide(rule_set(rule(action), defaults=defaults), event(contact), now=NOW)
    assert note == plan.tasks[0].note
    assert note in plan.decisions[0].reason


@pytest.mark.parametrize(
    ("part", "more"),
    [
        ('at: "soon" is no moment', {"at": "{{ 'soon' }}"}),
        ("at: data.absent is missing", {"at": "{{ data.absent }}"}),
        ('timezone: "Mars/Base" is no time zone', {"timezone": "{{ 'Mars/Base' }}"}),
        ("timezone: data.absent is missing", {"timezone": "{{ data.absent }}"}),
    ],
)
def test_a_time_that_cannot_be_read_ends_the_task(part, more):
    """The reason names the key and what was wrong with it."""
    made = planned(call(**more))
    assert TaskState.DEAD is made.state
    assert part in made.reason


def test_what_expired_before_planning_is_suppressed():
    """`expires` counts from the event; a task that comes too late is not made and says so."""
    late = planned(call(expires=timedelta(seconds=60)))
    assert TaskState.SUPPRESSED is late.state
    assert late.reason.startswith("too late: it expired at 2026-03-02T13:00:30.000Z")
    fresh = planned(call(expires=timedelta(hours=24)))
    assert (TaskState.PLANNED, NOW - timedelta(minutes=1) + timedelta(hours=24)) == (fresh.state, fresh.expires_at)


def test_what_would_be_made_after_it_expires_is_suppressed():
    """Nobody is called the day after the rule's own limit."""
    made = planned(call(at="+2h", expires=timedelta(hours=1)))
    assert TaskState.SUPPRESSED is made.state
    assert "it would be made at" in made.reason


# Team tasks


def test_a_team_task_has_all_its_keys():
    """Null where empty, medium priority, sent at once."""
    made = planned(team_task())
    assert {
        "title": "rule",
        "description": f"[lw:{made.key[:12]}]",
        "due_date": None,
        "due_time": None,
        "timezone": None,
        "priority": "medium",
        "responsible_ids": ["u1"],
        "ai_contact_id": None,
        "ai_customer_id": None,
    } == made.fields
    assert (NOW, "vambe", None) == (made.due_at, made.provider, made.note)


@pytest.mark.parametrize(
    ("expected", "due", "zone"),
    [
        (("2026-03-02", "12:01", "America/Santiago"), timedelta(hours=2), "America/Santiago"),
        (("2026-03-03", "00:01", "Asia/Tokyo"), timedelta(hours=2), "Asia/Tokyo"),
        (("2026-12-01", "14:00", "America/Santiago"), DueDate(date="2026-12-01", time="14:00"), "America/Santiago"),
        (("2026-12-01", None, None), DueDate(date="2026-12-01"), "America/Santiago"),
        (("2026-09-06", "01:30", "America/Santiago"), DueDate(date="2026-09-06", time="00:30"), "America/Santiago"),
        (("2026-03-02", "10:31", "America/Santiago"), "{{ '+30m' }}", "America/Santiago"),
        (("2026-03-02", "20:00", "America/Santiago"), "{{ '2026-03-02T23:00:00Z' }}", "America/Santiago"),
        (("2026-03-05", None, None), "{{ '2026-03-05' }}", "America/Santiago"),
    ],
)
def test_a_due_date_is_in_the_tasks_zone_rounded_up(expected, due, zone):
    """Date and time come from one moment; without a time the task is all-day and has no zone."""
    made = planned(team_task(due=due, timezone=zone))
    assert expected == tuple(made.fields[key] for key in ("due_date", "due_time", "timezone"))


@pytest.mark.parametrize(
    ("zone", "task_zone", "assign", "rule_zone", "default"),
    [
        ("Asia/Tokyo", "Asia/Tokyo", IN_TURN, "Europe/Madrid", "Asia/Dubai"),
        ("America/Lima", None, IN_TURN, "Europe/Madrid", "Asia/Dubai"),
        ("Europe/Madrid", None, CLOSERS, "Europe/Madrid", "Asia/Dubai"),
        ("Asia/Dubai", None, CLOSERS, None, "Asia/Dubai"),
        ("UTC", None, CLOSERS, None, None),
    ],
)
def test_the_zone_of_a_team_task_is_never_the_contacts(zone, task_zone, assign, rule_zone, default):
    """Its own, the team's, the rule's, the default's, then UTC with a warning."""
    made = planned(
        team_task(assign=assign, due=timedelta(hours=2), timezone=task_zone),
        defaults=Defaults(timezone=default, country_zones={"CL": "America/Santiago"}),
        timezone=rule_zone,
    )
    assert zone == made.fields["timezone"]
    assert (zone == "UTC") == bool(made.note and "UTC was used" in made.note)


@pytest.mark.parametrize(
    ("expected", "assign", "owner"),
    [
        (["u1", "u2"], CLOSERS, None),
        (["u1", "u2"], "{{ data.owner }}", "closers"),
        (["u7"], "{{ data.owner }}", "u7"),
        (["42"], "{{ data.owner }}", 42),
        (["u7", "u8"], "{{ data.owner }}", ["u7", "u8", "u7"]),
        (["u1", "u9"], ("u1", "u9", "u1"), None),
    ],
)
def test_assign_becomes_user_ids(expected, assign, owner):
    """A team means everyone of it; a template gives a team, an id, or a list of ids; each id stands once."""
    made = planned(team_task(assign=assign), data={"owner": owner})
    assert expected == made.fields["responsible_ids"]
    assert made.rotation is None


@pytest.mark.parametrize("assign", [IN_TURN, "{{ 'turns' }}"])
def test_a_team_that_takes_turns_is_left_to_the_ledger(assign):
    """The task carries the rotation and no responsible ids."""
    made = planned(team_task(assign=assign))
    assert ("turns", ("u1", "u2")) == (made.rotation.team, made.rotation.member_ids)
    assert "responsible_ids" not in made.fields


@pytest.mark.parametrize(
    ("part", "more"),
    [
        ("nobody to do it", {"assign": None}),
        ("nobody to do it", {"assign": "{{ data.owner | default('') }}"}),
        ("nobody to do it", {"assign": "{{ [] }}"}),
        ("assign: data.owner is missing", {"assign": "{{ data.owner }}"}),
        ("holds several in one text", {"assign": "{{ 'u1, u2' }}"}),
        ("assign: true is no user id", {"assign": "{{ true }}"}),
        ("due: ", {"due": "{{ 'someday' }}"}),
        ("due: ", {"due": DueDate(date="2026-02-30")}),
        ("due: ", {"due": DueDate(date="2026-12-01", time="25:00")}),
        ('priority: it is low, medium or high, not "urgent"', {"priority": "urgent"}),
    ],
)
def test_a_team_task_that_cannot_be_made_says_why(part, more):
    """It is dead with a reason that names the key."""
    made = planned(team_task(**more))
    assert TaskState.DEAD is made.state
    assert part in made.reason


# Never fails

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
)
texts = (
    st.none()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["+56911112222", "CL", "America/Lima", "9 1111 2222"])
)
contacts = st.builds(
    Contact, id=texts, name=texts, phone=texts, email=texts, country=texts, timezone=texts, language=texts,
    consent=st.none() | st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)  # fmt: skip
GREEDY = rule_set(
    rule(
        call("c", title="{{ data.a }}", description="{{ data.b }} {{ data }}", at="{{ data.a }}", priority="{{ data.b }}",
             contact={"phone_number": "{{ data.a | default(contact.phone) }}"}, expires=timedelta(hours=1)),
        call("m", TaskType.MINDHUNTERS_TASK, type="survey", task_data={"x": "{{ data }}"}, timezone="{{ data.a }}"),
        call("w", TaskType.WHATSAPP_TEMPLATE, title="{{ contact.name | first_name }}", at="next 09:00"),
        team_task("t", assign="{{ data.a }}", due="{{ data.b }}", title="{{ data.a | money }}"),
        team_task("u", assign="{{ data }}", due=DueDate(date=dynamic("{{ data.a }}"), time=dynamic("{{ data.b }}"))),
    ),
    rule(call(), name="second", if_={"data.a": {"gt": 5}, "not": {"data.b": {"matches": "a"}}}),
)  # fmt: skip


@given(
    json_values | st.fixed_dictionaries({"a": json_values, "b": json_values}),
    contacts,
    st.datetimes(timezones=st.just(UTC)),
)
@example(None, Contact(email="\ud800"), NOW)
def test_deciding_never_fails_for_what_an_event_holds(data, contact, occurred_at):
    """Whatever the CRM sent: decisions and tasks with reasons, texts within limits, and fields that can be stored."""
    plan = decide(GREEDY, event(contact, data, occurred_at=occurred_at), now=NOW)
    assert 2 == len(plan.decisions)
    for task in plan.tasks:
        assert (task.state is TaskState.PLANNED) == (task.reason is None)
        assert task.fields["description"].endswith(f"[lw:{task.key[:12]}]")
        assert 1 <= len(task.fields["title"]) <= 200
        assert "could not be planned" not in str(task.reason)
        json.dumps(task.fields, allow_nan=False, ensure_ascii=False).encode()
    for decision in plan.decisions:
        assert "could not be decided" not in decision.reason


def test_a_due_moment_at_the_end_of_the_calendar_names_its_field():
    """A moment that cannot be rounded up any more makes the task dead with the name of the field."""
    plan = decide(
        rule_set(rule(team_task(due="{{ data.when }}"))), event(data={"when": "9999-12-31T23:59:59Z"}), now=NOW
    )
    (task,) = plan.tasks
    assert task.state is TaskState.DEAD
    assert task.reason.startswith("due: ")


def test_data_nested_without_end_is_a_reason_and_not_a_crash():
    """A hundred thousand levels reach the templates: the tasks that look at them are dead, the others are planned."""
    deep = []
    for _ in range(100_000):
        deep = [deep]
    plan = decide(GREEDY, event(data={"a": deep, "b": "x"}), now=NOW)
    states = {task.name: task.state for task in plan.tasks}
    assert (TaskState.DEAD, TaskState.PLANNED) == (states["c"], states["w"])
    consent = {}
    for _ in range(100_000):
        consent = {"c": consent}
    plan = decide(GREEDY, event(replace(ANA, consent=consent)), now=NOW)
    assert ["rule", "second"] == [decision.rule for decision in plan.decisions]


@pytest.mark.parametrize(
    ("outcome", "conditions", "created", "contact", "zone"),
    [
        # 10:00:30 in Santiago, 08:00:30 in Lima, 13:00:30 in UTC
        (True, {"older_than": "1h"}, "2026-03-02T08:59", ANA, None),
        (False, {"older_than": "1h"}, "2026-03-02T09:01", ANA, None),
        (True, {"newer_than": "1h"}, "2026-03-02T09:01", replace(ANA, timezone="America/Santiago"), None),
        (False, {"older_than": "1h"}, "2026-03-02T08:59", replace(ANA, timezone="America/Lima"), None),
        (True, {"older_than": "1h"}, "2026-03-02T12:00:00Z", replace(ANA, timezone="America/Lima"), None),
        # no zone known: the rule's, else UTC
        (True, {"older_than": "1h"}, "2026-03-02T08:59", Contact(), "America/Santiago"),
        (False, {"newer_than": "1h"}, "2026-03-02T11:59", Contact(), None),
        # several zones: the latest moment counts, as for `at`
        (False, {"older_than": "1h"}, "2026-03-02T06:00", Contact(country="US"), None),
        (True, {"before": "2026-03-01"}, "2026-03-01T02:59:00Z", ANA, None),
        (False, {"before": "2026-03-01"}, "2026-03-01T03:01:00Z", ANA, None),
        (True, {"after": "2026-03-01T00:00Z"}, "2026-02-28T21:01", ANA, None),
        (False, {"after": "2026-03-01"}, "2026-03-01", ANA, None),
        (False, {"after": "0001-01-01"}, "0001-01-02", replace(ANA, timezone="Asia/Tokyo"), None),
    ],
)
def test_conditions_read_a_moment_without_an_offset_in_the_contacts_zone(outcome, conditions, created, contact, zone):
    """Where the event and the rule give local times, they are the contact's; the fallbacks are those of `at`."""
    contact = contact if contact.country != "CL" or contact.timezone else replace(contact, timezone="America/Santiago")
    made = rule(call(), if_={"data.created": conditions}, timezone=zone)
    (decision,) = decide(rule_set(made), event(contact, {"created": created}), now=NOW).decisions
    assert outcome is (decision.outcome is DecisionOutcome.MATCHED)


@pytest.mark.parametrize("text", ["2h", "+2h", " 2h "])
def test_a_due_from_a_template_is_a_span_with_or_without_a_plus(text):
    """What a literal `due` may be, a template may give."""
    task = planned(team_task(due="{{ data.d }}"), data={"d": text})
    assert (TaskState.PLANNED, "2026-03-02", "15:01") == (task.state, task.fields["due_date"], task.fields["due_time"])


def test_a_due_from_a_template_that_is_too_long_says_so():
    """A span beyond ten years is told as such."""
    assert "longer than ten years" in planned(team_task(due="{{ data.d }}"), data={"d": "4000d"}).reason


@pytest.mark.parametrize(
    "text",
    [
        "before [lw:aaaaaaaaaaaa] after",
        "[LW:AAAAAAAAAAAA]",
        "[l\x00w:aaaaaaaaaaaa]",
        "[lw:aaaaaa[lw:bbbbbbbbbbbb]aaaaaa]",
        "[lw:aaaaaa[lw:bbb[lw:cccccccccccc]bbbbbbbbb]aaaaaa]",
        "x" * 1_960 + "[lw:aaaaaaaaaaaa]",
    ],
)
def test_a_mark_from_outside_is_taken_out(text):
    """Only the task's own mark stands in its texts: a copied one would make another task look delivered."""
    task = planned(team_task(title="{{ data.x }}", description="{{ data.x }}"), data={"x": text})
    assert [f"[lw:{task.key[:12]}]"] == re.findall(r"(?i)\[lw:[0-9a-f]{12}\]", task.fields["description"])
    assert [] == re.findall(r"(?i)\[lw:[0-9a-f]{12}\]", task.fields["title"])


def test_marks_of_direction_are_taken_out():
    """No invisible mark that turns the direction of writing reaches a provider."""
    marks = "\u200e\u200f\u061c\u202a\u202e\u2066\u2069"
    task = planned(team_task(title="{{ data.x }}", description="{{ data.x }}"), data={"x": f"a{marks}b"})
    assert ("ab", f"ab [lw:{task.key[:12]}]") == (task.fields["title"], task.fields["description"])
