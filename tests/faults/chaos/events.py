"""What the sender posts and what each event is to become: numbered events of one run, found again by their number anywhere."""

from __future__ import annotations

import hashlib
import hmac
import json

SECRET = "chaos-secret-that-guards-nothing"
PATH = "/webhooks/crm"
AGENT = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
TEMPLATE = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
PERSON = "cccccccc-cccc-4ccc-8ccc-cccccccccccc"
#: What every fourth event brings later, and every tenth repeats when in doubt.
LATE_EVERY, LATE_SECONDS, AGAIN_EVERY = 4, 3, 10
#: The rules' own word on retries.
RETRIES, RETRY_SECONDS = 40, 1.0
#: What stands in every event and must stand in no log.
PERSONAL = ("Quilapan", "@people.example", "+5691")

_RETRY = f"{{delay: {RETRY_SECONDS:.0f}s, jitter: 0, max_attempts: {RETRIES}}}"

RULES = f"""
version: 1
defaults: {{timezone: America/Santiago}}
sources:
  crm:
    auth:
      any_of:
        - hmac: {{algorithm: sha256, key: {{env: CRM_SECRET}}, header: X-Signature, encoding: hex, signed: [body]}}
    body: {{format: json}}
    event: {{type: event, id: id, occurred_at: {{path: occurred_at, unit: iso}}, subject: {{kind: lead, id: lead.id}}}}
    contact: {{id: lead.id, name: lead.name, phone: lead.phone, email: lead.email, country: lead.country}}
    data: lead
    region: CL
rules:
  - id: every-lead
    when: lead.created
    then:
      - make_call: {{agent: {AGENT}, title: "Call {{{{ subject.id }}}}"}}
        retry: {_RETRY}
      - team_task: {{title: "Meet {{{{ subject.id }}}}", priority: low, assign: [{PERSON}]}}
        retry: {_RETRY}
  - id: late
    when: lead.created
    if: {{data.late: true}}
    then:
      - whatsapp_template:
          agent: {AGENT}
          template: {TEMPLATE}
          title: "Late {{{{ subject.id }}}}"
          at: +{LATE_SECONDS}s
        retry: {_RETRY}
  - id: again
    when: lead.created
    if: {{data.again: true}}
    then:
      - team_task: {{title: "Again {{{{ subject.id }}}}", priority: low, assign: [{PERSON}]}}
        if_unsure: repeat
        retry: {_RETRY}
"""


def event_id(seed: int, number: int) -> str:
    """Return the id of an event, which is its lead's too."""
    return f"evt-{seed}-{number:06d}"


def number_of(event: str) -> int:
    """Return the number of an event."""
    return int(event.rsplit("-", 1)[1])


def body(seed: int, number: int) -> bytes:
    """Return the body of an event."""
    identifier = event_id(seed, number)
    lead = {
        "id": identifier,
        "name": f"Ana Quilapan {number}",
        "phone": f"+5691{number:07d}",
        "email": f"ana{number}@people.example",
        "country": "CL",
        "late": number % LATE_EVERY == 0,
        "again": number % AGAIN_EVERY == 0,
    }
    return json.dumps({"event": "lead.created", "id": identifier, "lead": lead}).encode()


def signature(content: bytes) -> str:
    """Return what the signature header says of a body."""
    return hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()


def expected(event: str) -> frozenset[tuple[str, str]]:
    """Return what an event is to become: provider and title of each of its tasks."""
    number = number_of(event)
    wanted = {("mindhunters", f"Call {event}"), ("vambe", f"Meet {event}")}
    if number % LATE_EVERY == 0:
        wanted.add(("mindhunters", f"Late {event}"))
    if number % AGAIN_EVERY == 0:
        wanted.add(("vambe", f"Again {event}"))
    return frozenset(wanted)
