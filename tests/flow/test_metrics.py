"""The numbers of a running line: they are those of the ledger, of all its processes, and they outlive a restart."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families


def scraped(line):
    """Return every sample of a scrape by name and labels."""
    answer = asked(line, "/metrics")
    assert 200 == answer.status_code
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def asked(line, path):
    """Ask the operator port with the line's own token."""
    token = (line.home / "operator-token").read_text()
    return httpx.get(line.state["operator_url"] + path, auth=("operator", token), trust_env=False)


def ended(line, number):
    """Return the samples as soon as so many touches have ended."""

    def found():
        samples = scraped(line)
        sums = (value for (name, *_), value in samples.items() if name == "leadwire_tasks_ended_total")
        return samples if sum(sums) >= number else None

    return line.until(found)


def test_what_happened_is_in_the_numbers(own_line) -> None:
    """Webhooks, events, decisions, touches, attempts and times of every process, before and after a restart; no names."""
    own_line.start()
    own_line.post(own_line.event())
    own_line.post(own_line.event(value=1))
    own_line.post(own_line.event(), signature="00" * 32)
    samples = ended(own_line, 3)
    assert samples
    # Each process of the ingress writes its counts once a second.
    assert own_line.until(lambda: [1, 2] == [scraped(own_line).get(name) for name in (rejected, accepted)])
    samples = scraped(own_line)

    for name, labels, value in (
        ("leadwire_webhook_requests_total", {"source": "crm", "outcome": "accepted", "reason": ""}, 2),
        ("leadwire_events_received_total", {"source": "crm", "type": "lead.created"}, 2),
        ("leadwire_events_ended_total", {"state": "processed"}, 2),
        ("leadwire_decisions_total", {"rule": "big-lead", "outcome": "matched"}, 1),
        ("leadwire_decisions_total", {"rule": "big-lead", "outcome": "not_matched"}, 1),
        ("leadwire_tasks_planned_total", {"type": "make_call"}, 1),
        ("leadwire_tasks_ended_total", {"type": "whatsapp_template", "state": "delivered"}, 1),
        ("leadwire_attempts_total", {"provider": "vambe", "verdict": "delivered", "status": "2xx"}, 1),
        ("leadwire_delivery_after_received_seconds_count", {"type": "team_task"}, 1),
        ("leadwire_tasks", {"type": "make_call", "state": "delivered"}, 1),
        ("leadwire_due_work", {"kind": "events", "provider": ""}, 0),
        ("leadwire_broker_up", {}, 1),
        ("leadwire_queue_messages", {"queue": "leadwire.events"}, 0),
        ("leadwire_rules_refused", {}, 0),
    ):
        assert value == samples[name, *sorted(labels.items())], name
    text = asked(own_line, "/metrics").text + asked(own_line, "/status").text
    assert not [word for word in ("Ana", "56911112222", own_line.url) if word in text]
    assert (own_line.home.parent / "up.log").read_text().count(f"{own_line.state['operator_url']}/metrics") == 1
    said = asked(own_line, "/status").json()
    assert (True, True, {"delivered": 3}) == (said["ready"], said["broker"]["reachable"], said["tasks"])

    own_line.stop()
    own_line.start()
    own_line.post(own_line.event())
    samples = ended(own_line, 6)
    assert samples
    assert 2 == samples["leadwire_tasks_ended_total", ("state", "delivered"), ("type", "make_call")]
    assert samples[rejected] == 1


rejected = (
    "leadwire_webhook_requests_total",
    ("outcome", "rejected"),
    ("reason", "mismatch"),
    ("source", "crm"),
)
accepted = (
    "leadwire_webhook_requests_total",
    ("outcome", "accepted"),
    ("reason", ""),
    ("source", "crm"),
)
