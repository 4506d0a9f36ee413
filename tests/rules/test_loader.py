from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.loader import inspect, load, version_of
from rules.rule_set import DueDate, Member, Team
from rules.templates import Template
from rules.times import At
from rules.vocabulary import RetryPolicy, RuleError, RuleFault, TaskType

AGENT = "11111111-1111-4111-8111-111111111111"
USER = "aaaaaaaa-0000-4000-8000-000000000001"
FAULTY = sorted((Path(__file__).parent / "faulty").glob("*.yaml"))
#: The variables that faulty files may use.
ENVIRONMENT = {"SALES_AGENT": AGENT, "NAME": "x", "LEADWIRE_HOME": "/srv"}


def rule_set(text, environment=None, **options):
    """Return the book of one file."""
    return load({"rules.yaml": text}, ENVIRONMENT | (environment or {}), **options)


def rule(then, head=""):
    """Return a file with one rule."""
    return f"rules:\n  - id: a\n    when: lead.created\n{head}    then:\n{then}"


def call(keys="", beside=""):
    """Return a file with one rule that makes a call."""
    return rule(f"      - make_call: {{agent: {AGENT}{keys}}}\n{beside}")


def faults(*texts, **environment):
    """Return the faults of files that cannot be accepted, as they are printed."""
    files = {f"{number}.yaml": text for number, text in enumerate(texts)}
    with pytest.raises(RuleError) as caught:
        load(files, environment)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("path", FAULTY, ids=lambda path: path.stem)
def test_a_faulty_file_is_refused_with_exactly_these_messages(path):
    """Every file in faulty/ is refused with the messages that stand in its last lines after `#= `."""
    text = path.read_text(encoding="utf-8")
    expected = [line.removeprefix("#= ") for line in text.splitlines() if line.startswith("#= ")]

    with pytest.raises(RuleError) as caught:
        rule_set(text)

    assert expected == str(caught.value).splitlines()
    assert expected


def test_a_whole_rule_is_compiled():
    """Spans are spans, templates are compiled, teams are found, and the rest is what is written."""
    found = rule_set(f"""
version: 1
defaults: {{timezone: America/Santiago, country_zones: {{US: America/New_York}}}}
teams:
  closers: {{by: round_robin, timezone: UTC, members: [{{name: Ana, id: {USER}}}]}}
rules:
  - id: big
    description: Big ones
    when: [lead.created, deal.*]
    if: {{data.value: {{gt: 10}}}}
    stop: true
    timezone: Europe/Madrid
    then:
      - id: call
        make_call:
          agent: ${{SALES_AGENT}}
          title: "Call {{{{ contact.name | default('you') }}}}"
          at: +10m
          expires: +24h
          priority: 8
          redial: {{max: 3}}
          timezone: "{{{{ contact.timezone | default('UTC') }}}}"
          extra_fields: {{note: "{{{{ source }}}}", n: 1}}
        retry: {{strategy: exponential, max_attempts: 5, delay: 2m, cap: 1h, jitter: full}}
        if_unsure: repeat
      - team_task: {{assign: closers, due: {{date: 2026-12-01, time: "14:00"}}, priority: high}}
      - id: other
        team_task: {{assign: [{USER}, "{{{{ data.owner | default('x') }}}}"], due: +2h}}
""")
    (rule_,) = found.rules
    first, second, third = rule_.actions

    assert (
        Team(name="closers", by="round_robin", timezone="UTC", members=(Member(name="Ana", id=USER),))
        == found.teams["closers"]
    )
    assert ("America/Santiago", {"US": "America/New_York"}) == (found.defaults.timezone, found.defaults.country_zones)
    assert ("big", "Big ones", ("lead.created", "deal.*"), True, "Europe/Madrid", "rules.yaml:7:5") == (
        rule_.id,
        rule_.description,
        rule_.when,
        rule_.stop,
        rule_.timezone,
        rule_.place,
    )
    assert rule_.condition({"data": {"value": 11}}) is None
    assert "data.value" == rule_.condition({"data": {"value": 9}}).path
    assert ("call", TaskType.MAKE_CALL, "rules.yaml:14:9") == (first.name, first.type, first.place)
    assert At(after=timedelta(minutes=10), clock=None, moment=None) == first.at
    assert timedelta(hours=24) == first.expires
    assert isinstance(first.timezone, Template)
    assert AGENT == first.body["agent"]
    assert (8, {"max": 3}) == (first.body["priority"], first.body["redial"])
    assert "Call you" == first.body["title"].render({"contact": {}})
    assert isinstance(first.body["extra_fields"]["note"], Template)
    assert 1 == first.body["extra_fields"]["n"]
    assert {"agent", "title", "priority", "redial", "extra_fields"} == set(first.body)
    assert ("repeat", "ask") == (first.if_unsure, second.if_unsure)
    assert (
        RetryPolicy(
            strategy="exponential", max_attempts=5, delay=timedelta(minutes=2), cap=timedelta(hours=1), jitter="full"
        )
        == first.retry
    )
    assert (found.teams["closers"], DueDate(date="2026-12-01", time="14:00")) == (second.assign, second.due)
    assert {"priority": "high"} == second.body
    assert timedelta(hours=2) == third.due
    assert USER == third.assign[0]
    assert isinstance(third.assign[1], Template)
    assert {"priority": "medium"} == third.body
    assert RetryPolicy() == third.retry


def test_a_file_that_cannot_be_read_hides_nothing_of_the_others():
    """A fault in the place of a text stands among the others, in the order of the files."""
    unread = RuleFault(file="b.yaml", line=1, column=1, path="", message="cannot be read: Permission denied")

    with pytest.raises(RuleError) as caught:
        load({"a.yaml": "x: 1", "b.yaml": unread, "c.yaml": "y: 1"}, {})

    assert ["a.yaml", "b.yaml", "c.yaml"] == [fault.file for fault in caught.value.faults]
    assert unread == caught.value.faults[1]


def test_an_inspection_tells_sources_and_warnings_beside_faults():
    """What can be read is handed on although something else is faulty; nobody says there are no rules then."""
    found = inspect({"a.yaml": "sources: {crm: {}}\nwrong: 1\n", "b.yaml": "rules: ["}, {})

    assert (None, ["crm"], ()) == (found.rule_set, [source.name for source in found.sources], found.warnings)
    assert ["a.yaml", "b.yaml"] == [fault.file for fault in found.faults]


def test_a_variable_can_give_a_number():
    """Where one variable is the whole value and a number is wanted, it is one; everywhere else it is text."""
    keys = ', priority: "${N}", redial: {max: "${N}"}, title: "${N}", extra_fields: {n: "${N}"}'
    beside = '        retry: {strategy: exponential, max_attempts: "${N}", factor: "${HALF}"}\n'
    (rule_,) = rule_set(call(keys, beside), {"N": "5", "HALF": "1.5"}).rules
    (action,) = rule_.actions

    assert (5, {"max": 5}, "5", {"n": "5"}) == tuple(
        action.body[key] for key in ("priority", "redial", "title", "extra_fields")
    )
    assert (5, 1.5) == (action.retry.max_attempts, action.retry.factor)


@pytest.mark.parametrize("value", ["five", "11", "5.5", " 5", "05", "5" * 30, "true"])
def test_a_variable_that_is_no_fitting_number_is_refused(value):
    """What the variable holds is checked like a number that is written there."""
    (fault,) = faults(call(', priority: "${N}"'), N=value)

    assert "must be a whole number from 1 to 10" in fault


def test_a_number_from_a_variable_is_text_in_conditions():
    """A comparison for equality means the text that the variable holds."""
    (rule_,) = rule_set(
        rule(f"      - make_call: {{agent: {AGENT}}}\n", '    if: {data.x: "${N}"}\n'), {"N": "5"}
    ).rules

    assert rule_.condition({"data": {"x": "5"}}) is None
    assert rule_.condition({"data": {"x": 5}}) is not None


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (call(", at: +2d, expires: 24h"), "it can never be made"),
        (rule(f"      - make_call: {{agent: {AGENT}}}\n").replace("lead.created", "Lead.Created"), "`lead.created`?"),
        (rule(f"      - make_call: {{agent: {AGENT}}}\n").replace("lead.created", "[a.b, c, a.b]"), "stands twice"),
    ],
)
def test_what_is_sound_and_hardly_meant_is_a_warning(text, warning):
    """A task too late for itself, a type in other letters, a type that is listed twice."""
    (told,) = rule_set(text).warnings

    assert warning in told.message


def test_a_task_within_its_life_is_no_warning():
    """Templates, equal spans and moments say nothing about being too late."""
    for keys in (", at: +24h, expires: 24h", ", at: '{{ data.x | default(now) }}', expires: 1h", ", expires: 1h"):
        assert () == rule_set(call(keys)).warnings


def test_order_is_file_then_place():
    """Rules come in the order of the files, then as they stand."""
    one = "rules:\n" + "".join(
        f"  - {{id: {name}, when: x, then: [{{make_call: {{agent: {AGENT}}}}}]}}\n" for name in "ab"
    )
    two = one.replace("id: a", "id: c").replace("id: b", "id: d")

    assert ["c", "d", "a", "b"] == [rule.id for rule in load({"2.yaml": two, "1.yaml": one}, {}).rules]


def test_a_rule_without_if_always_holds():
    """No conditions, nothing that fails."""
    assert rule_set(call()).rules[0].condition({}) is None


def test_an_empty_folder_and_empty_sections_are_fine_with_a_warning():
    """No files, empty files and empty sections make an empty book that says so."""
    for files in ({}, {"a.yaml": ""}, {"a.yaml": "rules:\nteams:\ndefaults:\nsources:\ncalendars:\n"}):
        found = load(files, {})

        assert () == found.rules
        assert ["every event will be recorded and ignored"] == [
            fault.message.rpartition(": ")[2] for fault in found.warnings
        ]


def test_all_faults_of_all_files_come_in_one_run():
    """A fault in one file or rule hides none in another."""
    found = faults(
        "rules:\n  - {id: a, wen: x, then: []}\n  - {id: b, when: x, then: [{team_task: {assign: nobody}}]}\n",
        "a: [\n",
        "teams: {x: {members: [{id: ${NOPE}}]}}\n",
        'teams: {x: {members: [{id: "${NOPE}"}]}}\n',
    )

    assert [
        "0.yaml:2:5",
        "0.yaml:2:13",
        "0.yaml:2:27",
        "0.yaml:3:50",
        "1.yaml:2:1",
        "2.yaml:1:29",
        "3.yaml:1:28",
    ] == [message.split(": ")[0] for message in found]


def test_what_must_be_unique_is_unique_over_all_files():
    """Rule ids, teams, sources and `defaults` that stand twice are refused, naming the other place."""
    text = (
        f"defaults: {{timezone: UTC}}\nteams: {{t: {{members: [{{id: {USER}}}]}}}}\nsources: {{s: {{extend: generic}}}}\n"
        f"rules: [{{id: a, when: x, then: [{{make_call: {{agent: {AGENT}}}}}]}}]\n"
    )

    assert [
        "1.yaml:1:1: defaults: `defaults` stand in one file only: they already stand at 0.yaml:1:1",
        "1.yaml:2:9: teams.t: duplicate team `t`: it already stands at 0.yaml:2:9",
        "1.yaml:3:11: sources.s: duplicate source `s`: it already stands at 0.yaml:3:11",
        '1.yaml:4:14: rules.0.id: duplicate rule id "a": it already stands at 0.yaml:4:14',
    ] == faults(text, text)


def test_teams_and_defaults_serve_all_files():
    """A rule finds a team and the defaults that stand in another file."""
    found = load(
        {
            "a.yaml": rule("      - team_task: {assign: closers, due: +2h}\n"),
            "b.yaml": f"defaults: {{timezone: UTC, retry: {{delay: 5m}}}}\nteams: {{closers: {{members: [{{id: {USER}}}]}}}}\n",
        },
        {},
    )

    assert found.teams["closers"] is found.rules[0].actions[0].assign
    assert timedelta(minutes=5) == found.rules[0].actions[0].retry.delay
    assert () == found.warnings


@pytest.mark.parametrize(
    ("expected", "default", "own"),
    [
        (RetryPolicy(), "", ""),
        (RetryPolicy(max_attempts=0), "", "max_attempts: 0"),
        (RetryPolicy(delay=timedelta(minutes=5), max_attempts=1), "delay: 5m", "max_attempts: 1"),
        (RetryPolicy(strategy="fixed"), "strategy: exponential, factor: 3", "strategy: fixed"),
        (
            RetryPolicy(strategy="exponential", factor=3.0, max_attempts=2),
            "strategy: exponential, factor: 3",
            "max_attempts: 2",
        ),
        (
            RetryPolicy(
                strategy="custom", max_attempts=2, schedule=(timedelta(minutes=1), timedelta(hours=1)), jitter=0.0
            ),
            "",
            "strategy: custom, schedule: [1m, 1h], jitter: 0",
        ),
    ],
)
def test_a_retry_is_what_the_task_says_then_the_defaults(expected, default, own):
    """A task's retry completes that of `defaults`, and starts afresh when it names a strategy."""
    text = (f"defaults: {{retry: {{{default}}}}}\n" if default else "") + call(beside=f"        retry: {{{own}}}\n")

    assert expected == rule_set(text).rules[0].actions[0].retry


def test_the_shipped_schedule_is_that_of_standard_webhooks():
    """`standard-webhooks` has nine delays that add up to 75 hours, 35 minutes and 5 seconds."""
    policy = (
        rule_set(call(beside="        retry: {strategy: custom, schedule: standard-webhooks}\n"))
        .rules[0]
        .actions[0]
        .retry
    )

    assert 9 == policy.max_attempts == len(policy.schedule)
    assert timedelta(hours=75, minutes=35, seconds=5) == sum(policy.schedule, timedelta())


def test_the_version_is_the_content():
    """The same names and texts in the same order give the same version, anything else another one."""
    files = {"a.yaml": "x", "b.yaml": ""}

    assert version_of(files) == version_of(dict(files))
    others = [
        {"a.yaml": "", "b.yaml": "x"},
        {"a.yaml": "x"},
        {"b.yaml": "", "a.yaml": "x"},
        {"a.yamlx": "", "b.yaml": ""},
    ]
    assert 5 == len({version_of(files), *map(version_of, others)})
    assert version_of(files).startswith("rs_")
    assert 19 == len(version_of(files))


def test_the_book_keeps_its_texts_with_variables_unresolved():
    """What is stored in the ledger never holds a variable's value."""
    text = call(', title: "${NAME}"')
    found = rule_set(text, {"NAME": "value-from-outside"})

    assert {"rules.yaml": text} == found.files
    assert "value-from-outside" == found.rules[0].actions[0].body["title"]


def test_a_flood_of_faults_is_cut():
    """A file of rubbish gives a thousand messages and the number of the others."""
    found = faults("rules:\n" + "- x\n" * 1_500)

    assert 1_001 == len(found)
    assert "0.yaml:1501:3: and 500 more faults in this file" == found[-1]


# Variables -----------------------------------------------------------------------------------------------------------


def body(text, **environment):
    """Return what the first task of a file sends."""
    return rule_set(text, environment).rules[0].actions[0].body


def test_a_variable_is_text_and_never_read_again():
    """A value that looks like YAML, a number or a template stays the text it is."""
    for value in ("12", "true", "[a, b]", "{{ 7 * 7 }}", "{% if x %}", "a: b", "${NAME}", "'"):
        assert value == body(call(', title: "${VALUE}"'), VALUE=value)["title"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40))
def test_a_variable_inside_a_template_is_printed_as_it_is(value):
    """Beside and inside template code a value comes out as it went in, whatever marks it holds."""
    found = body(call(""", title: "<${VALUE}>{{ data.x | default('${VALUE}') }}" """), VALUE=value)["title"]
    printed = found.render({"data": {}})

    assert f"<{value}>{value}".replace("\r\n", "\n").replace("\r", "\n") == printed.replace("\r\n", "\n").replace(
        "\r", "\n"
    )


def test_a_long_text_with_variables_costs_little():
    """Marks that are never closed do not make reading slow: the text is refused for its length."""
    text = "{{ x }}" + "{{ '" * 100_000 + "${NAME}"

    (message,) = faults(call(f', title: "{text}"'), NAME="x")

    assert "20,000 are allowed" in message


def test_a_doubled_dollar_is_a_literal_one():
    """`$${NAME}` is the text `${NAME}`, in plain text and in templates."""
    assert "${NAME}" == body(call(', title: "$${NAME}"'))["title"]
    assert "${NAME} 1" == body(call(', title: "$${NAME} {{ data.x }}"'))["title"].render({"data": {"x": 1}})


def test_variables_reach_conditions_teams_and_sources():
    """Every section resolves variables in its values."""
    found = rule_set(
        "teams: {t: {members: [{id: '${USER}'}]}}\nsources: {s: {auth: ['${NAME}']}}\n"
        + rule("      - team_task: {assign: t}\n", "    if: {data.x: '${NAME}'}\n"),
        {"USER": USER},
    )

    assert USER == found.teams["t"].members[0].id
    assert {"auth": ["x"]} == found.sources[0].value
    assert found.rules[0].condition({"data": {"x": "x"}}) is None


def test_only_the_named_sections_are_resolved():
    """A process without the variables of a section reads it all the same and keeps the text."""
    text = "sources: {s: {token: '${TOKEN}'}}\n" + rule(
        "      - make_call: {agent: '${AGENT}', title: 'Call ${WHO}', expires: '${SPAN}', priority: '${N}'}\n",
        "    if: {data.x: {gt: '${MIN}'}, data.y: {in: ['${A}', b]}}\n",
    )
    ingress = load({"a.yaml": text}, {"TOKEN": "t"}, resolve=frozenset({"sources"}))
    worker = load(
        {"a.yaml": text.replace("'${N}'", "5")},
        {"AGENT": AGENT, "WHO": "x", "SPAN": "2h", "MIN": "3", "A": "a"},
        resolve=frozenset({"rules"}),
    )

    assert {"token": "t"} == ingress.sources[0].value
    assert ("${AGENT}", "Call ${WHO}") == tuple(ingress.rules[0].actions[0].body[key] for key in ("agent", "title"))
    assert {"token": "${TOKEN}"} == worker.sources[0].value
    assert AGENT == worker.rules[0].actions[0].body["agent"]


def test_any_key_may_wait_for_its_variable():
    """A process that does not resolve the rules takes a variable wherever a value of a closed set is wanted, too."""
    other = rule(
        "      - mindhunters_task: {agent: '${A}', type: '${T}'}\n        retry: {strategy: '${S}', delay: '${D}'}\n"
    )

    (action,) = load({"a.yaml": other}, {}, resolve=frozenset({"sources"})).rules[0].actions

    assert ("${T}", RetryPolicy()) == (action.body["type"], action.retry)


@pytest.mark.parametrize("value", ["[]", "{}", "[x]", "true", "null"])
def test_a_strategy_of_another_kind_is_a_fault_like_any_other(value):
    """No value makes the checks themselves fail."""
    (fault,) = faults(call(beside=f"        retry: {{strategy: {value}}}\n"))

    assert "retry.strategy" in fault


def test_an_unresolved_section_is_checked_all_the_same():
    """Not knowing a variable excuses nothing else."""
    text = rule("      - make_call: {agent: '${AGENT}', title: '${X}', priority: 99}\n")

    with pytest.raises(
        RuleError, match=r"a\.yaml:5:65: rules\.0\.then\.0\.make_call\.priority: must be a whole number"
    ):
        load({"a.yaml": text}, {}, resolve=frozenset({"sources"}))


def test_a_value_that_is_no_text_is_refused():
    """A variable whose bytes are no UTF-8 cannot be sent anywhere."""
    text = call(', title: "${BAD}"')

    assert ["is not UTF-8 text"] == [m[-len("is not UTF-8 text") :] for m in faults(text, BAD="a\udcff")]


def test_settings_of_leadwire_are_out_of_reach():
    """`${LEADWIRE_...}` is refused even when it is set, and its value is shown nowhere."""
    (message,) = faults(call(', title: "${LEADWIRE_VAMBE_API_KEY}"'), LEADWIRE_VAMBE_API_KEY="fake-secret")

    assert "${LEADWIRE_VAMBE_API_KEY} is a setting of Leadwire itself" in message
    assert "fake-secret" not in message


# Warnings ------------------------------------------------------------------------------------------------------------


def warnings(text, **environment):
    """Return the warnings about one file, as they are printed."""
    return [str(fault) for fault in rule_set(text, environment).warnings]


def test_a_negative_test_of_an_optional_field_is_warned_of():
    """`ne` and `not_in` do not hold where the field is missing, which is easily forgotten."""
    found = warnings(
        rule(f"      - make_call: {{agent: {AGENT}}}\n", "    if: {data.a: {ne: 1}, contact.country: {not_in: [CL]}}\n")
    )

    assert ["rules.yaml:4:19", "rules.yaml:4:45"] == [message.split(": ")[0] for message in found]


def test_a_template_of_an_optional_field_is_warned_of():
    """A template over a field that may be missing needs a default, unless a condition says that it is there."""
    (found,) = warnings(call(', title: "{{ contact.name }} {{ data.x | default(1) }} {{ source }}"'))
    tested = rule(f'      - make_call: {{agent: {AGENT}, title: "{{{{ data.x }}}}"}}\n', "    if: {data.x: {gt: 1}}\n")

    assert found.startswith("rules.yaml:5:73: rules.0.then.0.make_call.title: without contact.name this task ends dead")
    assert [] == warnings(tested)


def test_a_user_id_that_is_no_uuid_is_warned_of():
    """Vambe's documents show other ids, too: they are accepted with a warning."""
    found = warnings("teams: {t: {members: [{id: abc}]}}\n" + rule("      - team_task: {assign: [user_1]}\n"))

    assert [
        'rules.yaml:1:28: teams.t.members.0.id: "abc" is no UUID, and Vambe\'s newer documents ask for one',
        'rules.yaml:6:30: rules.0.then.0.team_task.assign.0: "user_1" is no UUID, and Vambe\'s newer documents ask for one',
    ] == found


@pytest.mark.parametrize(
    ("expected", "head", "task"),
    [
        (1, "", "due: +2h"),
        (1, "", 'due: {date: 2026-12-01, time: "14:00"}'),
        (0, "", "due: {date: 2026-12-01}"),
        (0, "", "title: x"),
        (0, "", "due: +2h, timezone: UTC"),
        (0, "    timezone: UTC\n", "due: +2h"),
    ],
)
def test_a_due_time_without_a_zone_is_warned_of(expected, head, task):
    """UTC is used where neither task, team, rule nor defaults name a zone."""
    found = warnings(rule(f"      - team_task: {{assign: [{USER}], {task}}}\n", head))

    assert expected == len([message for message in found if "UTC will be used" in message])


def test_a_misspelt_event_type_is_warned_of():
    """Event types are open, so a slip in a known one is a warning and not a fault."""
    assert [
        "rules.yaml:3:11: rules.0.when: lead.creatd is no event type Leadwire knows; did you mean `lead.created`?"
    ] == (warnings(call().replace("lead.created", "lead.creatd")))
    assert [] == warnings(call().replace("lead.created", "ticket.opened"))


def test_a_call_to_an_address_only_is_warned_of():
    """Without a phone number a call always ends dead."""
    (found,) = warnings(call(", contact: {email: a@example.com}"))

    assert found.endswith("has no `phone_number`: without one this task ends `dead: no phone`")


@given(st.text(alphabet=st.sampled_from("rules:\n -{}[]ait\"'$1when.dofh")))
def test_loading_any_text_gives_a_book_or_rule_faults(text):
    """Whatever a file holds, there is a book or a RuleError, and nothing else."""
    with suppress(RuleError):
        assert {"a.yaml": text} == load({"a.yaml": text}, {}).files
