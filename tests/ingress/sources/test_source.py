"""Which sources are refused, and the sentence at the line that leads to the fix."""

from __future__ import annotations

import pytest

from ingress.sources import PRESETS, build, preset
from rules.rule_set import SourceText
from rules.yaml_reader import read

ENV = {"KEY": "fake-secret-of-the-tests"}
DESIGN = """
sources:
  hubspot: {extend: hubspot, secrets: [{env: HUBSPOT_CLIENT_SECRET}], url: {public_base: "https://hooks.example.com"}}
  crm:
    auth:
      any_of:
        - hmac: {algorithm: sha256, key: {env: CRM_SECRET}, header: X-Signature, encoding: hex, signed: [body]}
    body: {format: json}
    split: "items[*]"
    event:
      type: event
      map: {lead_new: lead.created}
      id: id
      occurred_at: {path: occurred_at, unit: iso}
      subject: {kind: lead, id: lead.id}
    contact:
      {id: lead.contact_id, name: lead.name, phone: lead.phone, email: lead.email, country: lead.country, timezone: lead.timezone}
    data: lead
    region: CL
    ack: {status: 202, busy_status: 503}
"""


def test_the_documented_sources_work_as_printed() -> None:
    """What the manual shows is accepted word for word."""
    value, places = read(DESIGN, "rules.yaml")
    texts = [
        SourceText(name=name, value=one, places=places, path=("sources", name))
        for name, one in value["sources"].items()
    ]
    environment = {"HUBSPOT_CLIENT_SECRET": "fake-hubspot-secret", "CRM_SECRET": "fake-crm-secret-1"}
    sources, faults = build(texts, environment, public_url=None)

    assert [] == faults
    assert {"hubspot", "crm"} == set(sources)
    assert (202, 503) == (sources["crm"].ack.status, sources["crm"].ack.busy_status)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{extend: hubspt, secrets: [{env: KEY}]}", '1:10: extend: there is no preset "hubspt", did you mean hubspot'),
        ("{extend: [generic]}", "1:10: extend: must be the name of one preset, such as generic, not a list"),
        ("{extend: generic}", "secrets: is missing; name the variable"),
        ("{extend: generic, secrets: []}", "1:28: secrets: is an empty list"),
        ("{extend: generic, secrets: [{env: UNSET}]}", "1:29: secrets.0: UNSET is not set, or empty"),
        ("{extend: generic, secrets: [{env: EMPTY}]}", "EMPTY is not set, or empty"),
        ("{extend: generic, secrets: ['']}", "the secret is empty"),
        ("{extend: generic, secrets: [{env: LEADWIRE_OPERATOR_TOKEN}]}", "a setting of Leadwire itself"),
        ("{extend: generic, secrets: [7]}", "must name the variable that holds the secret"),
        ("{event: {type: event}}", "has no auth"),
        ("{auth: {}, event: {type: event}}", "needs any_of, or one of: hmac, hash_concat"),
        ("{auth: {any_of: []}, event: {type: event}}", "any_of is an empty list: list at least one way in"),
        ("{auth: {any_of: [{name: x}]}, event: {type: event}}", "auth.any_of.0: needs one of: hmac"),
        (
            "{auth: {hmac: {header: X}, basic: {}}, secrets: [{env: KEY}], event: {type: e}}",
            "has hmac and basic: list them under any_of",
        ),
        ("{auth: {hmac: {header: X, enabled: false}}, secrets: [{env: KEY}], event: {type: e}}", "unknown key"),
        (
            "{auth: {hmac: {header: X}, enabled: false}, secrets: [{env: KEY}], event: {type: e}}",
            "no verifier is enabled",
        ),
        (
            "{auth: {hmac: {heder: X}}, secrets: [{env: KEY}], event: {type: e}}",
            "did you mean `header`? allowed here: algorithm",
        ),
        (
            "{auth: {hmac: {header: X, algorithm: md5}}, secrets: [{env: KEY}], event: {type: e}}",
            "allowed: sha1, sha256, sha512",
        ),
        (
            "{auth: {hmac: {header: X, signed: [bdy]}}, secrets: [{env: KEY}], event: {type: e}}",
            '"bdy" is not known, did you mean body',
        ),
        (
            "{auth: {hmac: {header: X, signed: [timestamp]}}, secrets: [{env: KEY}], event: {type: e}}",
            "signs a timestamp: say where it is",
        ),
        (
            "{auth: {hmac: {header: X, signed: [id]}}, secrets: [{env: KEY}], event: {type: e}}",
            "signs an id: say where it is",
        ),
        (
            "{auth: {hmac: {header: X, key_encoding: hex}}, secrets: [{env: KEY}], event: {type: e}}",
            "KEY: the secret is not hex",
        ),
        ("{auth: {ed25519: {header: X}}, secrets: [{env: KEY}], event: {type: e}}", "secrets: KEY: "),
        ("{auth: {rsa_sha256: {header: X, key: {env: KEY}}}, event: {type: e}}", "auth.rsa_sha256.key: KEY: "),
        (
            "{auth: {url_token: {}, timestamp: {item: t, header: X}}, secrets: [{env: KEY}], event: {type: e}}",
            "exactly one of: header, item, path",
        ),
        ("{extend: generic, secrets: [{env: KEY}], boddy: 1}", "did you mean `body`? allowed here: ack, auth, body"),
        ("{extend: generic, secrets: [{env: KEY}], event: {typ: x}}", "event.typ: unknown key; did you mean `type`?"),
        ("{extend: generic, secrets: [{env: KEY}], contact: {fone: x}}", "did you mean `phone`?"),
        ("{extend: generic, secrets: [{env: KEY}], contact: {phone: a..b}}", 'contact.phone: "a..b" is not a path'),
        ("{extend: generic, secrets: [{env: KEY}], split: 7}", "must be a path such as"),
        (
            "{extend: generic, secrets: [{env: KEY}], body: {format: yaml}}",
            '"yaml" is not one of the words known here; allowed: auto, form, form-brackets, json, xml',
        ),
        ("{extend: generic, secrets: [{env: KEY}], region: Chile}", "region: must be two capital letters"),
        ("{extend: generic, secrets: [{env: KEY}], ack: {status: 404}}", "ack.status: must be 299 or less"),
        (
            "{extend: generic, secrets: [{env: KEY}], ack: {busy_status: 410}}",
            "ack.busy_status: the number 410 is not one of the words",
        ),
        ("{extend: generic, secrets: [{env: KEY}], ack: 7}", "ack: must be a mapping"),
        (
            '{extend: generic, secrets: [{env: KEY}], ack: {content_type: "text/plain\\nX: y"}}',
            "ack.content_type: must be printable ASCII on one line, such as text/plain",
        ),
        ("{extend: generic, secrets: [{env: KEY}], enrich: {url: x}}", "enrich: is not yet supported"),
        (
            "{extend: generic, secrets: [{env: KEY}], event: {occurred_at: {path: x, unit: h}}}",
            "unit: must be one of: iso, s, ms",
        ),
        (
            "{extend: generic, secrets: [{env: KEY}], event: {map: {a: 7}}}",
            "event.map: a: must be a type such as lead.created",
        ),
        ("{extend: generic, secrets: [{env: KEY}], event: {dedupe: id}}", "must be a list of paths"),
        ("{extend: generic, secrets: [{env: KEY}], event: {dedupe: [$content]}}", "alone identifies nothing"),
        ("{extend: generic, secrets: [{env: KEY}], handshake: [{get_echo: {}}]}", "verify_token: {env:"),
        (
            "{extend: generic, secrets: [{env: KEY}], handshake: [{}]}",
            "exactly one of: get_echo, json_challenge, options, ignore",
        ),
        ("{extend: generic, secrets: [{env: KEY}], auth: {enable: [v9]}}", 'no verifier named "v9"'),
        ("[a]", "must be a mapping"),
    ],
)
def test_a_faulty_source_is_refused_with_the_remedy(text, sentence, find_faults) -> None:
    """Every fault names the place and what to write instead; no secret is in any message."""
    found = [str(fault) for fault in find_faults(text, {**ENV, "EMPTY": "  "})]

    assert any(sentence in one for one in found), found
    assert not any(ENV["KEY"] in one for one in found)


def test_hubspot_needs_its_public_address(find_faults, make_source) -> None:
    """Without the address HubSpot knows no signature could ever be right: the remedy is named."""
    text = "{extend: hubspot, secrets: [{env: KEY}]}"
    (fault,) = find_faults(text, ENV, public_url=None)

    assert "LEADWIRE_PUBLIC_URL" in fault.message
    assert "public_base" in fault.message
    assert "https://hooks.example.com" == make_source(text, ENV, public_url="https://hooks.example.com/").public_base


def test_all_faults_come_at_once(find_faults) -> None:
    """A misspelt key does not hide an unset variable."""
    found = find_faults("{extend: generic, secrets: [{env: UNSET}], boddy: 1, region: x}", ENV)

    assert 3 == len(found)


def test_faults_come_as_they_stand_in_the_file(find_faults) -> None:
    """Whatever finds a fault, the list runs from top to bottom."""
    found = find_faults("{extend: generic, secrets: [{env: UNSET}], boddy: 1, region: x, contact: {fone: y}}", ENV)

    assert sorted(fault.column for fault in found) == [fault.column for fault in found]
    assert 4 == len(found)


def test_a_setting_of_leadwire_as_a_secret_is_one_fault(find_faults) -> None:
    """That it is not set would be no help: it cannot be used, set or not."""
    (fault,) = find_faults("{extend: generic, secrets: [{env: LEADWIRE_OPERATOR_TOKEN}]}", ENV)

    assert "a setting of Leadwire itself" in fault.message


@pytest.mark.parametrize("name", ["a/b", "", "a b", "ñ", "a" * 64, "../x"])
def test_a_name_that_cannot_be_an_address_is_refused(name, find_faults) -> None:
    """A source's name is part of its address."""
    (fault,) = find_faults("{extend: generic, secrets: [{env: KEY}]}", ENV, name=name)

    assert "part of its address" in fault.message


def test_two_sources_of_one_name_are_refused() -> None:
    """Which of them would answer would depend on the order of files."""
    value, places = read("{extend: generic, secrets: [{env: KEY}]}", "a.yaml")
    text = SourceText(name="crm", value=value, places=places, path=())
    _, faults = build([text, text], ENV, public_url=None)

    assert ['a source named "crm" stands in another file already'] == [fault.message for fault in faults]


def test_what_may_surprise_is_a_warning(make_source) -> None:
    """No id, a short secret, an id outside the signature: accepted, and said."""
    text = "{auth: {hmac: {header: X}}, secrets: [{env: KEY}], event: {type: event}}"
    short = make_source(text, {"KEY": "short"})

    assert [
        "KEY has fewer than 16 characters and can be guessed",
        "names neither id nor dedupe: an event is recognised by its content, and for ten minutes only",
    ] == [warning.message for warning in short.warnings]
    assert () == make_source("{extend: generic, secrets: [{env: KEY}]}", ENV).warnings


def test_a_preset_is_extended_key_by_key(make_source) -> None:
    """Mappings are merged; a way in of one's own replaces the preset's; a verifier that is off can be turned on."""
    renamed = make_source(
        "{extend: generic, secrets: [{env: KEY}], event: {map: {nuevo: lead.created}}, contact: {phone: tel}}", ENV
    )
    own = make_source("{extend: generic, secrets: [{env: KEY}], auth: {hmac: {header: X-Sig}}}", ENV)
    with_v1 = make_source("{extend: hubspot, secrets: [{env: KEY}], auth: {enable: [v1]}}", ENV)
    without_v1 = make_source("{extend: hubspot, secrets: [{env: KEY}]}", ENV)

    assert {"nuevo": "lead.created"} == renamed.mapping.event.map
    assert ("tel", True) == (renamed.mapping.contact.phone.text, renamed.mapping.contact.name is not None)
    assert ["hmac"] == [one.name for one in own.verifiers]
    assert ["v3", "v1"] == [one.name for one in with_v1.verifiers]
    assert ["v3"] == [one.name for one in without_v1.verifiers]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_good_by_itself(name, make_source) -> None:
    """Every shipped file is read, and complete but for the secret."""
    assert preset(name)
    assert (
        ()
        == make_source(
            f"{{extend: {name}, secrets: [{{env: KEY}}]}}", {"KEY": "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
        ).warnings
    )
