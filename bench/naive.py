"""What Leadwire is measured against: the script a Python developer writes in an afternoon, with every default left alone.

Flask checks the signature and the JSON, Celery carries the event through the broker, a prefork worker posts one task with
httpx. No rules, no ledger, no retries, nothing against doing it twice.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any

import httpx
from celery import Celery
from flask import Flask, request
from flask.typing import ResponseReturnValue

SECRET = os.environ["BENCH_SECRET"].encode()
PROVIDER_URL = os.environ["BENCH_PROVIDER_URL"]

app = Flask("naive")
queue = Celery("naive", broker=os.environ["BENCH_BROKER_URL"])
queue.conf.task_ignore_result = True
http = httpx.Client(timeout=10, headers={"Authorization": "Bearer not-a-real-token"})


@queue.task
def make_call(event: dict[str, Any]) -> None:
    """Have the lead called."""
    lead = event["lead"]
    task = {
        "title": f"Call {lead['id']}",
        "type": "make_call",
        "agent_uuid": "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa",
        "contact": {"name": lead["name"], "phone_number": lead["phone"]},
    }
    http.post(f"{PROVIDER_URL}/tasks", json=task).raise_for_status()


@app.post("/webhooks/<source>")
def webhook(source: str) -> ResponseReturnValue:  # noqa: ARG001 - one source is all it knows
    """Queue the event."""
    expected = "sha256=" + hmac.new(SECRET, request.get_data(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, request.headers.get("X-Hub-Signature-256", "")):
        return {"error": "wrong signature"}, 401
    event = request.get_json()
    if event["event"] == "lead.created":
        make_call.delay(event)
    return {"status": "queued"}, 202
