"""One suite over every provider: what it sends is taken by a strict stand-in, and it reads whatever comes back."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from rules.vocabulary import PROVIDER_OF, ProviderName, SettingsError, TaskType, Verdict
from worker.http import HttpClient
from worker.providers import Answered, NeverSent, NoAnswer, Provider, ProviderRequest, Unsendable, load
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox
from worker.sandbox.switches import SWITCHES

AGENT = "228d7a0d-9072-4ca8-939b-959b75cc606a"
OTHER = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
CREDENTIALS = {ProviderName.MINDHUNTERS: MINDHUNTERS_TOKEN, ProviderName.VAMBE: VAMBE_API_KEY}

#: Every open question answered in the way that refuses more.
STRICT = {
    **{name: "refuse" for name, switch in SWITCHES.items() if "refuse" in switch.choices},
    "mindhunters.bearer_case": "exact",
    "mindhunters.unexplained_types": "accept",
    "vambe.absent_keys": "strict",
    "vambe.responsible_format": "400",
}


@dataclass(frozen=True)
class Claimed:
    """A claimed task, as far as a provider looks at it."""

    type: TaskType
    fields: dict[str, Any]
    due_at: datetime
    expires_at: datetime | None = None
    id: str = "tk_0"
    key: str = "0" * 64


def now() -> datetime:
    """Return the real moment: the stand-in checks against it."""
    return datetime.now(UTC)


@dataclass
class Line:
    """A provider, the way to its stand-in, and the stand-in."""

    provider: Provider
    transport: HttpClient
    sandbox: Sandbox

    def create(self, task: Claimed) -> Any:
        """Prepare, send and read one task."""
        request = self.provider.build_request(task, now())
        assert isinstance(request, ProviderRequest), request
        return self.provider.read_response(self.transport.send(request, deadline_seconds=5), now(), request)


def opened(sandbox: Sandbox, name: ProviderName) -> Line:
    """Return the line to one provider of a sandbox."""
    provider = load(name)
    url = sandbox.mindhunters_url if name is ProviderName.MINDHUNTERS else sandbox.vambe_url
    return Line(provider, HttpClient(url, provider.auth_headers(CREDENTIALS[name])), sandbox)


@pytest.fixture(scope="module")
def strict() -> Iterator[Sandbox]:
    """The stand-in, as strict as the documents allow."""
    with Sandbox(switches=STRICT) as sandbox:
        yield sandbox


#: A provider of another package, as a class, which an entry point names.
OTHERS = "from worker.providers.vambe import Vambe\n\n\nclass Other(Vambe):\n    pass\n"


def install(folder: Path, entry_points: str, *, package: str = "other-provider") -> None:
    """Put a package with these entry points for providers into a folder of the import path."""
    module = package.replace("-", "_")
    (folder / f"{module}.py").write_text(OTHERS)
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[leadwire.providers]\n{entry_points}\n")


@pytest.fixture(params=[*ProviderName, "vambe of another package"])
def line(request, strict, tmp_path, monkeypatch) -> Iterator[Line]:
    """Each provider in turn, with its own way to the stand-in."""
    strict.reset()
    name = ProviderName(request.param.partition(" ")[0])
    if request.param != name:
        install(tmp_path, "vambe = other_provider:Other")
        monkeypatch.syspath_prepend(str(tmp_path))
    found = opened(strict, name)
    assert (type(found.provider).__name__ == "Other") is (request.param != name)
    yield found
    found.transport.close()
    sys.modules.pop("other_provider", None)


@pytest.mark.parametrize(
    ("entry_points", "complaint"),
    [
        ("acme = other_provider:Other", "gives a provider `acme`: Leadwire makes tasks for mindhunters and vambe only"),
        ("mindhunters = other_provider:Other", "is not the provider `mindhunters`"),
        ("mindhunters = other_provider:OTHERS", "cannot be loaded: AttributeError"),
        ("mindhunters = pathlib:Path", "is not the provider `mindhunters`"),
    ],
)
def test_what_an_entry_point_cannot_give_is_refused(entry_points, complaint, tmp_path, monkeypatch) -> None:
    """An unknown name, another provider's name and what is no provider are told with the package they come from."""
    install(tmp_path, entry_points)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError) as raised:
        load(ProviderName.MINDHUNTERS)
    assert str(raised.value).startswith("the package other-provider (leadwire.providers: ")
    assert complaint in str(raised.value)


def test_two_packages_cannot_give_the_same_provider(tmp_path, monkeypatch) -> None:
    """Which one would serve is nobody's guess: both are named."""
    install(tmp_path, "vambe = other_provider:Other")
    install(tmp_path, "vambe = second_provider:Other", package="second-provider")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="both give the provider `vambe`") as raised:
        load(ProviderName.MINDHUNTERS)
    assert "other-provider" in str(raised.value)
    assert "second-provider" in str(raised.value)


SHARED = {"title": "Llamar a Zoë 🦊", "description": "gran lead\n[lw:abcdef012345]"}
MINDHUNTERS = {**SHARED, "agent": AGENT, "auto_queue": True, "contact": {"phone_number": "+56911112222"}}
SMALLEST: dict[TaskType, dict[str, Any]] = {
    TaskType.MAKE_CALL: MINDHUNTERS,
    TaskType.WHATSAPP_TEMPLATE: {**MINDHUNTERS, "template": OTHER},
    TaskType.MINDHUNTERS_TASK: {**MINDHUNTERS, "type": "follow_up", "task_data": {"note": "x"}},
    TaskType.TEAM_TASK: {**SHARED, "responsible_ids": [AGENT], "priority": "high", "timezone": "America/Santiago"},
}
MORE: dict[TaskType, dict[str, tuple[Any, ...]]] = {
    TaskType.MAKE_CALL: {
        "contact": ({"phone_number": "+56911112222"}, {"email": "ana@example.com"}),
        "priority": (None, 1, 10),
        "redial": (None, {"max": 1}),
        "campaign": (None, OTHER),
        "timezone": (None, "America/Santiago", "UTC"),
        "auto_queue": (True, False),
        "description": (None, "x"),
    },
    TaskType.WHATSAPP_TEMPLATE: {"priority": (None, 8), "auto_queue": (True, False)},
    TaskType.MINDHUNTERS_TASK: {"type": ("send_email", "survey", "custom"), "task_data": (None, {}, {"a": [1]})},
    TaskType.TEAM_TASK: {
        "due_date": (None, "2030-02-28"),
        "priority": ("low", "medium", "high", None),
        "responsible_ids": ([AGENT], [AGENT, OTHER, AGENT]),
        "ai_contact_id": (None, OTHER),
        "description": (None, "x"),
    },
}


def variants(type_: TaskType) -> Iterator[dict[str, Any]]:
    """Yield the fields of a task with every combination of the optional ones."""
    optional = MORE[type_]
    for values in product(*optional.values()):
        yield {**SMALLEST[type_], **dict(zip(optional, values, strict=True))}


@pytest.mark.parametrize("type_", list(TaskType))
def test_a_strict_provider_takes_what_is_prepared(strict, type_) -> None:
    """No combination of optional fields is refused, however the open questions are answered."""
    strict.reset()
    line = opened(strict, PROVIDER_OF[type_])
    prepared = list(variants(type_))
    for fields in prepared:
        reading = line.create(Claimed(type=type_, fields=fields, due_at=now(), expires_at=now() + timedelta(hours=1)))
        assert (Verdict.DELIVERED, None) == (reading.verdict, reading.reason), fields
    line.transport.close()
    assert len(prepared) == len(strict.tasks(PROVIDER_OF[type_]))
    assert [] == strict.state()["refused"]


@pytest.mark.parametrize("due_time", ["00:00", "09:30", "23:59"])
@pytest.mark.parametrize("zone", ["America/Santiago", "Asia/Kolkata", "Pacific/Kiritimati", "UTC"])
def test_a_due_time_is_held_as_meant(strict, due_time, zone) -> None:
    """A provider that honours the zone holds the very moment, and there is no warning."""
    line = opened(strict, ProviderName.VAMBE)
    fields = {**SMALLEST[TaskType.TEAM_TASK], "due_date": "2030-07-01", "due_time": due_time, "timezone": zone}
    reading = line.create(Claimed(type=TaskType.TEAM_TASK, fields=fields, due_at=now()))
    line.transport.close()
    assert (Verdict.DELIVERED, None) == (reading.verdict, reading.warning)


def test_a_zone_that_is_ignored_becomes_a_warning(strict) -> None:
    """With due_at as in the vendor's sample the task is delivered, with a warning."""
    with Sandbox(switches={"vambe.due_at": "sample"}) as sandbox:
        line = opened(sandbox, ProviderName.VAMBE)
        fields = {**SMALLEST[TaskType.TEAM_TASK], "due_date": "2030-07-01", "due_time": "14:00"}
        reading = line.create(Claimed(type=TaskType.TEAM_TASK, fields=fields, due_at=now()))
        line.transport.close()
    assert Verdict.DELIVERED is reading.verdict
    assert "2030-07-01T14:00Z" in (reading.warning or "")


def sample(line: Line) -> Claimed:
    """Return a task the line's provider can be given."""
    type_ = TaskType.TEAM_TASK if line.provider.name is ProviderName.VAMBE else TaskType.MAKE_CALL
    return Claimed(type=type_, fields=SMALLEST[type_], due_at=now())


def test_the_id_is_that_of_the_task_made(line) -> None:
    """What is kept as external id finds the task at the provider."""
    reading = line.create(sample(line))
    held = line.sandbox.tasks(line.provider.name)[0]
    assert (held.get("uuid") or held.get("id")) == reading.external_id


def test_the_mark_arrives(line) -> None:
    """The description with its mark is what the provider holds."""
    line.create(sample(line))
    assert line.sandbox.tasks(line.provider.name)[0]["description"].endswith("[lw:abcdef012345]")


@pytest.mark.parametrize(
    ("expected", "stored", "answer"),
    [
        (Verdict.BUSY, 0, {"status": 429, "headers": {"Retry-After": "2"}}),
        (Verdict.BUSY, 0, {"status": 503}),
        (Verdict.UNKNOWN, 0, {"status": 500}),
        (Verdict.UNKNOWN, 1, {"status": 500, "store": True}),
        (Verdict.UNKNOWN, 1, {"status": 504, "store": True}),
        (Verdict.UNKNOWN, 1, {"status": 201, "store": True, "body": "made, but who knows which"}),
        (Verdict.UNKNOWN, 0, "html_502"),
        (Verdict.UNKNOWN, 0, "hang_up_before"),
        (Verdict.UNKNOWN, 1, "hang_up_after"),
        (Verdict.UNKNOWN, 0, "reset_before"),
        (Verdict.UNKNOWN, 1, "reset_after"),
        (Verdict.PAUSE, 0, {"status": 401}),
        (Verdict.PAUSE, 0, {"status": 404, "body": "<html>", "headers": {"Content-Type": "text/html"}}),
        (Verdict.PAUSE, 0, {"status": 302, "headers": {"Location": "/login"}}),
    ],
)
def test_faults_become_verdicts(line, expected, stored, answer) -> None:
    """However a provider misbehaves, the verdict never claims to know more than can be known."""
    line.sandbox.script([{"answer": answer}])
    reading = line.create(sample(line))
    assert expected is reading.verdict, reading
    assert stored == len(line.sandbox.tasks(line.provider.name))
    assert Verdict.DELIVERED is line.create(sample(line)).verdict


def test_a_refusal_names_the_complaint(line) -> None:
    """A provider's refusal is dead with its own words, a remedy and its status in front."""
    line.sandbox.script([])
    body = {"title": "no agent, nobody responsible"}
    reading = line.provider.read_response(
        line.transport.send(ProviderRequest(method="POST", path="/tasks", json=body)), now()
    )
    assert Verdict.REFUSED is reading.verdict
    assert (reading.reason or "").split()[0] in {"400", "422"}
    assert "retry" in (reading.reason or "")


def test_a_wrong_credential_pauses(line) -> None:
    """A wrong key is not the task's fault."""
    other = HttpClient(line.transport._base_url, line.provider.auth_headers("sandbox-wrong-key"))
    reading = line.provider.read_response(other.send(line.provider.probe_request()), now())
    other.close()
    assert Verdict.PAUSE is reading.verdict


@pytest.mark.parametrize("path", ["/v0/tasks", "/../nothing/tasks", "/task"])
def test_a_wrong_address_never_refuses_a_task(line, path) -> None:
    """A POST to an address that is not there pauses the provider, in whatever form the 404 comes."""
    request = line.provider.build_request(sample(line), now())
    assert isinstance(request, ProviderRequest)
    sent = line.transport.send(ProviderRequest(method="POST", path=path, json=request.json))
    assert Verdict.PAUSE is line.provider.read_response(sent, now()).verdict


def test_the_probe_shows_that_the_credential_works(line) -> None:
    """The probe is answered with 200 and changes nothing."""
    sent = line.transport.send(line.provider.probe_request())
    assert isinstance(sent, Answered)
    assert 200 == sent.status
    assert [] == line.sandbox.tasks(line.provider.name)


def test_an_empty_task_is_unsendable(line) -> None:
    """Nothing at all is refused before any request, with a reason."""
    made = line.provider.build_request(Claimed(type=sample(line).type, fields={}, due_at=now()), now())
    assert isinstance(made, Unsendable)
    assert "`title`" in made.reason


@pytest.mark.parametrize("sent", [NeverSent(error="x\r\ny"), NoAnswer(error="x" * 9000), Answered(status=0)])
def test_reading_is_total(line, sent) -> None:
    """Every end of a send has a verdict with a printable reason."""
    reading = line.provider.read_response(sent, now())
    assert (reading.reason or "").isprintable()
    assert len(reading.reason or "") <= 500


def test_requests_carry_no_credential(line) -> None:
    """The credential is the transport's: a request can be stored and shown."""
    request = line.provider.build_request(sample(line), now())
    assert isinstance(request, ProviderRequest)
    assert {} == dict(request.headers)
    assert "sandbox" not in json.dumps(request.json)
