"""Flower beside a line on which everything happened that can become of a touch: what a person sees who has nothing else."""

import hashlib
import hmac
import json
import os
import signal
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import redis

from rules.vocabulary import TaskState
from tests.flow.browsing import Browser, table
from tests.flow.conftest import AGENT, PERSON, RULES, SECRET, Line
from tests.flow.processes import command_of, processes_of
from tests.servers.postgres import PASSWORD as POSTGRES_PASSWORD
from tests.servers.postgres import QUOTED_PASSWORD as POSTGRES_QUOTED
from tests.servers.redis import PASSWORD as REDIS_PASSWORD
from tests.servers.redis import QUOTED as REDIS_QUOTED
from worker.publisher import CELERY_TASK_OF
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY

TOKEN = "fake-operator-token"
AUTH = ("operator", TOKEN)
NAME, PHONE, EMAIL, NOTE = "Zacarias Quintanilla", "+56987654321", "zq@people.example", "prefers the afternoon"
#: The provider's own words, which may be about the person.
SAID = "Zacarias asked for peace"
#: Nothing of these may be seen anywhere.
PERSONAL = ("Zacarias", "Quintanilla", "987654321", "zq@people", "afternoon", "asked for peace")
SECRETS = (SECRET, MINDHUNTERS_TOKEN, VAMBE_API_KEY, TOKEN)

SHOWN_RULES = f"""
version: 1
defaults: {{timezone: America/Santiago}}
{RULES[RULES.index("sources:") : RULES.index("rules:")]}  many:
    auth:
      any_of:
        - hmac: {{algorithm: sha256, key: {{env: CRM_SECRET}}, header: X-Signature, encoding: hex, signed: [body]}}
    body: {{format: json}}
    split: "items[*]"
    event: {{type: event, id: id, subject: {{kind: lead, id: lead.id}}}}
    contact: {{id: lead.id, name: lead.name, phone: lead.phone, email: lead.email}}
    data: lead
rules:
  - id: new-lead
    when: lead.created
    then:
      - make_call: &call {{agent: {AGENT}, title: "Call {{{{ contact.name }}}}", description: "{{{{ data.notes }}}}"}}
        retry: {{delay: 1h}}
  - {{id: warm-lead, when: lead.updated, then: [{{make_call: *call, retry: {{delay: 1s, jitter: 0}}}}]}}
  - {{id: expiring, when: deal.updated, then: [{{make_call: {{<<: *call, expires: +1h}}}}]}}
  - id: later
    when: deal.stage_changed
    then: [{{make_call: {{agent: {AGENT}, title: "Call {{{{ contact.name }}}}", at: +1h}}}}]
  - id: person
    when: deal.created
    then: [{{team_task: {{title: "Person {{{{ contact.name }}}}", priority: low, assign: [{PERSON}]}}}}]
""".replace("{<<: *call, expires: +1h}", f'{{agent: {AGENT}, title: "Call {{{{ contact.name }}}}", expires: +1h}}')

REFUSAL = {"success": False, "message": SAID, "error": {"code": "VALIDATION_ERROR", "field": "agent_uuid"}}
REFUSED = {"status": 422, "body": REFUSAL}
#: What Flower says of each state of the ledger.
STATE_OF = {
    TaskState.DELIVERED: "SUCCESS",
    TaskState.WAITING: "RETRY",
    TaskState.PLANNED: "RETRY",
    TaskState.DEAD: "FAILURE",
    TaskState.UNKNOWN: "FAILURE",
    TaskState.SUPPRESSED: "REVOKED",
}


@dataclass
class Shown:
    """A line and what was made to happen on it: the id of each case's task."""

    line: Line
    ids: dict[str, str] = field(default_factory=dict)
    queued: bytes = b""

    @property
    def url(self):
        """Flower's address."""
        return self.line.state["flower_url"]

    def get(self, path, **more):
        """Ask Flower as the operator."""
        return httpx.get(self.url + path, auth=AUTH, timeout=20, trust_env=False, **more)

    def rows(self):
        """Return the rows of touches by id."""
        return {uuid: row for uuid, row in self.get("/api/tasks").json().items() if uuid.startswith("tk_")}

    def event(self, case, type_, **more):
        """Return the event of a case; its person is known by the case."""
        lead = {"name": f"{NAME} {case}", "phone": PHONE, "email": EMAIL, "notes": NOTE, **more}
        return self.line.event(type_, **lead)

    def script(self, provider, case, answer, times=99):
        """Have the provider answer the case's task so."""
        verb = "Person" if provider == "vambe" else "Call"
        rule = {"provider": provider, "match": {"title": f"{verb} {NAME} {case}"}, "times": times, "answer": answer}
        self.line.sandbox.script([rule])

    def post_many(self, events):
        """Post events in one request."""
        body = json.dumps({"items": events}).encode()
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert httpx.post(f"{self.line.url}/webhooks/many", content=body, headers={"X-Signature": signature}).is_success

    def task(self, case):
        """Return the case's task, if there is one."""
        return next((task for task in self.line.tasks() if task.contact.name == f"{NAME} {case}"), None)

    def until(self, case, state, seconds=30):
        """Wait until the case's task is in this state."""

        def reached():
            task = self.task(case)
            return task if task and task.state is state else None

        task = self.line.until(reached, seconds)
        assert task, (case, self.task(case))
        self.ids[case] = task.id
        return task

    def workers(self):
        """Return the line's worker processes."""
        return [pid for pid in processes_of(self.line.home) if b"worker" in command_of(pid)]


def singles(shown):
    """One touch for each thing that can become of it; what is in doubt stays so, because no look-up tells."""
    shown.line.sandbox.turn({f"{provider}.listing": "status_500" for provider in ("mindhunters", "vambe")})
    for case, provider, type_, answer, times in (
        ("delivered", "vambe", "deal.created", None, 0),
        ("busy", "mindhunters", "lead.created", {"status": 503}, 99),
        ("refused", "mindhunters", "lead.created", REFUSED, 99),
        ("silent", "vambe", "deal.created", "hang_up_after", 1),
        ("settled", "vambe", "deal.created", "hang_up_after", 1),
        ("mended", "mindhunters", "lead.updated", {"status": 503, "headers": {"Retry-After": "6"}}, 1),
        ("revived", "mindhunters", "lead.created", REFUSED, 1),
    ):
        if answer:
            shown.script(provider, case, answer, times)
        shown.line.post(shown.event(case, type_))
    shown.line.post(shown.event("phoneless", "lead.created", phone=None))
    shown.line.post(shown.event("later", "deal.stage_changed"))
    long_ago = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    shown.line.post({**shown.event("late", "deal.updated"), "occurred_at": long_ago})
    shown.until("delivered", TaskState.DELIVERED)
    shown.until("busy", TaskState.WAITING)
    shown.until("refused", TaskState.DEAD)
    shown.until("phoneless", TaskState.DEAD)
    shown.until("silent", TaskState.UNKNOWN)
    shown.until("later", TaskState.PLANNED)
    shown.until("late", TaskState.SUPPRESSED)
    settled = shown.until("settled", TaskState.UNKNOWN).id
    # A look, so that the doubt is known before it ends.
    assert shown.line.until(lambda: "FAILURE" == shown.rows().get(settled, {}).get("state"))
    assert 0 == shown.line.cli("settle", settled, "--delivered", "seen-at-the-provider").returncode
    assert 0 == shown.line.cli("retry", shown.until("revived", TaskState.DEAD).id).returncode
    shown.until("revived", TaskState.DELIVERED)
    shown.until("mended", TaskState.DELIVERED)


def together(shown):
    """Touches that travel together: forty at once, of which three are refused, and twelve whose first try was alone."""
    for number in range(3):
        shown.script("mindhunters", f"many {number}", REFUSED)
    for number in range(12):
        shown.script("mindhunters", f"again {number}", REFUSED, 1)
        shown.line.post(shown.event(f"again {number}", "lead.created"))
        shown.until(f"again {number}", TaskState.DEAD)
    again = [shown.ids[f"again {number}"] for number in range(12)]
    (worker,) = shown.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        assert 0 == shown.line.cli("retry", *again).returncode
        shown.post_many([shown.event(f"many {number}", "lead.created") for number in range(40)])
        shown.queued = b"".join(queued_bytes(shown.line))
    finally:
        os.kill(worker, signal.SIGCONT)
    for number in range(40):
        shown.until(f"many {number}", TaskState.DEAD if number < 3 else TaskState.DELIVERED)
    for number in range(12):
        shown.until(f"again {number}", TaskState.DELIVERED)


def killed(shown):
    """A worker that is killed in the middle of a call."""
    shown.script("vambe", "killed", {"delay_seconds": 25}, 1)
    shown.line.post(shown.event("killed", "deal.created"))
    shown.until("killed", TaskState.SENDING)
    assert shown.line.until(lambda: "STARTED" == shown.rows().get(shown.ids["killed"], {}).get("state"))
    (worker,) = shown.workers()
    os.kill(worker, signal.SIGKILL)
    shown.until("killed", TaskState.UNKNOWN)
    shown.line.post(shown.event("after", "deal.created"))
    shown.until("after", TaskState.DELIVERED)


def queued_bytes(line):
    """Return what a line's own broker holds, keys and values."""
    socket = line.home / "broker" / "socket"
    if not socket.exists():
        return
    with redis.Redis(unix_socket_path=str(socket)) as client:
        for key in client.scan_iter():
            yield key
            kind = client.type(key)
            yield from {
                b"list": lambda key=key: client.lrange(key, 0, -1),
                b"set": lambda key=key: client.smembers(key),
                b"zset": lambda key=key: client.zrange(key, 0, -1),
                b"hash": lambda key=key: client.hgetall(key).values(),
                b"string": lambda key=key: [client.get(key)],
            }[kind]()


@pytest.fixture(scope="module")
def shown(house, tmp_path_factory):
    """Give a line on which everything happened, and Flower beside it."""
    line = Line(
        tmp_path_factory.mktemp("shown"),
        SHOWN_RULES,
        LEADWIRE_OPERATOR_TOKEN=TOKEN,
        CRM_SECRET=SECRET,
        **house.settings(),
    )
    try:
        line.start()
        line.sandbox.turn({"vambe.listing": "status_500"})  # what is in doubt there stays so
        shown = Shown(line)
        singles(shown)
        together(shown)
        killed(shown)
        yield shown
    finally:
        line.close()


pytestmark = pytest.mark.houses("sqlite+valkey", "postgresql+rabbitmq")


def test_every_row_says_what_the_ledger_says(shown):
    """Whatever came of a touch, by whom and how often, its row in Flower ends in the state that the ledger has."""

    def differing():
        rows = shown.rows()
        states = {task.id: STATE_OF[task.state] for task in shown.line.tasks()}
        told = {task.id for task in shown.line.tasks() if not task.contact.name.startswith(f"{NAME} many")}
        told |= {shown.ids[f"many {number}"] for number in range(3)}
        wrong = {
            uuid: (row["state"], states.get(uuid)) for uuid, row in rows.items() if row["state"] != states.get(uuid)
        }
        return wrong | dict.fromkeys(told - rows.keys(), "no row")

    assert shown.line.until(lambda: not differing(), 30), differing()


def test_a_person_sees_which_calls_failed_and_why(shown):
    """In the browser: each failed call under its type, with its state, cause, rule and attempt."""
    browser = Browser(shown.url, AUTH)

    def seen():
        rows = table(browser.dom("/tasks?state=FAILURE&name=leadwire.make_call"))
        return {uuid: row[:4] for uuid, row in rows.items()}

    again = {shown.ids[f"many {number}"] for number in range(3)}
    refused = ["leadwire.make_call", "FAILURE", "dead: refused 422, it did not take the fields"]
    labels = "rule new-lead, attempt 1"
    expected = {uuid: [*refused, labels] for uuid in {shown.ids["refused"], *again}}
    phoneless = shown.ids["phoneless"]
    why = f"dead: the contact has no phone number; see: leadwire show {phoneless}"
    expected[phoneless] = ["leadwire.make_call", "FAILURE", why, labels]
    assert shown.line.until(lambda: expected == seen(), 30), seen()


def test_a_person_sees_what_waits_and_what_is_in_doubt(shown):
    """In the browser: what waits and until when, what may have been executed, and what was too late."""
    browser = Browser(shown.url, AUTH)
    waiting = table(browser.dom("/tasks?state=RETRY"))
    assert {shown.ids["busy"], shown.ids["later"]} == set(waiting)
    assert waiting[shown.ids["busy"]][2].startswith("busy 503; again at 20")
    assert waiting[shown.ids["later"]][2].startswith("planned, due at 20")
    doubtful = table(browser.dom("/tasks?state=FAILURE&name=leadwire.team_task"))
    assert {shown.ids["silent"], shown.ids["killed"]} == set(doubtful)
    assert {"unknown, no answer: may have been executed"} == {row[2] for row in doubtful.values()}
    (late,) = table(browser.dom("/tasks?state=REVOKED")).values()
    assert ["leadwire.make_call", "REVOKED", "suppressed: too late: it expired before it could be made"] == late[:3]
    assert "422" in browser.dom(f"/task/{shown.ids['refused']}")


@pytest.mark.parametrize(
    ("search", "cases"),
    [
        ("{refused}", {"refused"}),
        ("state:RETRY", {"busy", "later"}),
        ("state:FAILURE name:team_task", {"silent", "killed"}),
        ("kwargs:rule=expiring", {"late"}),
        ("result:may state:FAILURE", {"silent", "killed"}),
        ("result:422 name:make_call", {"refused", "many 0", "many 1", "many 2"}),
        ("{settled} state:SUCCESS", {"settled"}),
    ],
)
def test_rows_are_found(shown, search, cases):
    """By the touch's id, state, type, rule and cause, in the search of the page."""
    form = {"draw": 1, "start": 0, "length": 100, "search[value]": search.format(**shown.ids)}
    form |= {"order[0][column]": 0, "order[0][dir]": "desc", "columns[0][data]": "received"}
    answer = httpx.post(f"{shown.url}/tasks/datatable", data=form, auth=AUTH, timeout=20, trust_env=False)
    found = {row["uuid"] for row in answer.json()["data"]}
    assert {shown.ids[case] for case in cases} == {uuid for uuid in found if uuid.startswith("tk_")}


def test_messages_of_many_show_their_counts(shown):
    """What travelled together is one row that succeeded, with how many of them came to what."""
    rows = shown.get("/api/tasks").json().values()
    counts = [
        row["result"] for row in rows if "leadwire.make_call" == row["name"] and not row["uuid"].startswith("tk_")
    ]
    assert any("3 dead" in count and "delivered" in count for count in counts), counts


def test_no_row_is_left_unended(shown):
    """Nothing is shown as running when nothing runs, whatever was killed meanwhile."""

    def running():
        rows = shown.get("/api/tasks").json().values()
        return [row for row in rows if row["state"] in {"STARTED", "RECEIVED"}]

    assert shown.line.until(lambda: not running(), 40), running()


def test_nothing_personal_and_no_secret_is_anywhere(shown):
    """Pages, answers, the saved memory, the log, the process list and the broker hold no person, payload or credential."""
    worker = next(iter(shown.get("/api/workers?refresh=1").json()))
    paths = ["/", "/workers?json=1", "/tasks", "/broker", f"/worker/{worker}", "/api/tasks", "/api/workers?refresh=1"]
    paths += ["/api/task/types", "/metrics", "/healthcheck", *(f"/task/{uuid}" for uuid in shown.rows())]
    places = {path: shown.get(path).content for path in paths}
    assert {200} == {shown.get(path).status_code for path in paths[:10]}
    browser = Browser(shown.url, AUTH)
    places["what the browser shows"] = browser.dom("/tasks").encode()
    memory = shown.line.home / "flower" / "memory"
    assert shown.line.until(memory.exists, 15)
    places["the memory"] = memory.read_bytes()
    places["Flower's log"] = (shown.line.home / "logs" / "flower.log").read_bytes()
    places["the broker"] = shown.queued
    everyone = processes_of(shown.line.home)
    places["the process list"] = b"".join(b" ".join(command_of(pid)) for pid in everyone)
    urls = (shown.line.settings.get(f"LEADWIRE_{name}_URL", "") for name in ("BROKER", "DATABASE"))
    passwords = [url.partition("@")[0].rpartition(":")[2] for url in urls if "@" in url and "guest" not in url]
    forbidden = [word.encode() for word in (*PERSONAL, *SECRETS, *passwords)]
    leaks = [(place, word) for place, text in places.items() for word in forbidden if word in text]
    assert [] == leaks
    assert shown.ids["refused"].encode() in places["the memory"]
    assert 0o600 == memory.stat().st_mode & 0o777


def test_flower_only_shows(shown):
    """Nobody without the token sees anything but that it lives, and nobody can do anything."""
    for path in ("/", "/tasks", "/broker", "/metrics", "/api/tasks", "/api/workers", "/api/task/types"):
        assert 401 == httpx.get(shown.url + path, trust_env=False).status_code, path
        wrong = httpx.get(shown.url + path, auth=("operator", "wrong"), trust_env=False)
        assert 401 == wrong.status_code, path
    assert 200 == httpx.get(f"{shown.url}/healthcheck", trust_env=False).status_code
    worker = next(iter(shown.get("/api/workers").json()))
    refused = shown.ids["refused"]
    for path in (
        f"/api/worker/shutdown/{worker}",
        f"/api/worker/pool/grow/{worker}",
        f"/api/worker/queue/cancel-consumer/{worker}?queue=leadwire.events",
        f"/api/task/revoke/{refused}",
        "/api/task/async-apply/leadwire.make_call",
        "/api/task/send-task/leadwire.make_call",
        "/api/task/apply/leadwire.make_call",
    ):
        answer = httpx.post(shown.url + path, auth=AUTH, json={"args": [refused]}, trust_env=False)
        assert 403 == answer.status_code, path


def test_what_flower_knew_survives_it_and_what_it_missed_is_told(shown):
    """Killed with SIGKILL it comes back with what it showed, and with what failed while it was away."""
    memory = shown.line.home / "flower" / "memory"
    assert shown.line.until(lambda: memory.exists() and time.time() - memory.stat().st_mtime < 60, 15)
    before = shown.get("/api/tasks").json()
    (flower,) = [pid for pid in processes_of(shown.line.home) if b"flower" in command_of(pid)]
    os.kill(flower, signal.SIGKILL)
    shown.script("mindhunters", "missed", REFUSED)
    shown.line.post(shown.event("missed", "lead.created"))
    shown.until("missed", TaskState.DEAD)

    def after():
        try:
            return shown.get("/api/tasks").json()
        except httpx.HTTPError:
            return {}

    assert shown.line.until(lambda: "FAILURE" == after().get(shown.ids["missed"], {}).get("state"), 40)
    rows = after()
    assert {} == {uuid: row["state"] for uuid, row in before.items() if rows.get(uuid, {}).get("state") != row["state"]}


@pytest.mark.houses("postgresql+redis")
def test_a_broker_that_was_away_is_heard_again(own_line, house):
    """After the broker was killed and came back, what fails then is shown, and what failed meanwhile too."""
    own_line.settings["LEADWIRE_OPERATOR_TOKEN"] = TOKEN
    (own_line.rules / "rules.yaml").write_text(SHOWN_RULES)
    own_line.start()
    shown = Shown(own_line)
    house.broker.kill()
    time.sleep(3)  # a moment without a broker: Flower, worker and ingress notice
    shown.line.post(shown.event("away", "lead.created", phone=None))
    house.broker.start()
    shown.line.post(shown.event("back", "lead.created", phone=None))
    for case in ("away", "back"):
        task_id = shown.until(case, TaskState.DEAD, 60).id
        assert own_line.until(lambda: "FAILURE" == shown.rows().get(task_id, {}).get("state"), 40), case  # noqa: B023 - called at once


@pytest.mark.houses("postgresql+redis")
def test_the_brokers_password_is_nowhere(own_line):
    """Neither as it is nor as it stands in the URL: not on a page, not in an answer, not in a log, not in the memory."""
    own_line.settings["LEADWIRE_OPERATOR_TOKEN"] = TOKEN
    own_line.start()
    shown = Shown(own_line)
    worker = own_line.until(lambda: next(iter(shown.get("/api/workers?refresh=1").json()), None))
    paths = ("/", "/broker", "/tasks", "/metrics", f"/worker/{worker}", "/api/workers?refresh=1", "/api/queues/length")
    places = {path: shown.get(path).text for path in paths}
    assert "leadwire.mindhunters" in places["/broker"]
    assert "broker_url" in places[f"/worker/{worker}"]
    own_line.stop()
    places |= {file.name: file.read_text() for file in (own_line.home / "logs").iterdir()}
    places["memory"] = (own_line.home / "flower" / "memory").read_bytes().decode("latin-1")
    secrets = (REDIS_PASSWORD, REDIS_QUOTED, POSTGRES_PASSWORD, POSTGRES_QUOTED, *SECRETS)
    assert [] == [(place, secret) for place, text in places.items() for secret in secrets if secret in text]


def test_types_are_told_apart(shown):
    """Each type of touch is a task of its own."""
    names = {row["name"] for row in shown.rows().values()}
    assert names <= set(CELERY_TASK_OF.values())
    assert {"leadwire.make_call", "leadwire.team_task"} == names
