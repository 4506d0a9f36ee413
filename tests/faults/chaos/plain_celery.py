"""The same job as a careful script without a ledger: Flask and Celery, each setting that makes Celery safer turned on.

Messages are acknowledged when their task has ended, come back when their worker is lost, and are taken one at a time; a
request that fails or is not answered is tried again. The visibility time-out, after which Redis hands out again what was
taken and not acknowledged, is thirty seconds instead of an hour, so that a run can wait for it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from datetime import UTC, datetime, timedelta

import httpx
from celery import Celery
from flask import Flask, request

from tests.faults.chaos.events import AGENT, LATE_SECONDS, PERSON, RETRIES, RETRY_SECONDS, TEMPLATE
from worker.sandbox import MINDHUNTERS_TOKEN, VAMBE_API_KEY

VISIBILITY_SECONDS = 30
SECRET = os.environ["CRM_SECRET"].encode()
MINDHUNTERS_URL, VAMBE_URL = os.environ["PLAIN_MINDHUNTERS_URL"], os.environ["PLAIN_VAMBE_URL"]

app = Flask("plain_celery")
queue = Celery("plain_celery", broker=os.environ["PLAIN_BROKER_URL"])
queue.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"visibility_timeout": VISIBILITY_SECONDS, "socket_timeout": 5},
)
http = httpx.Client(timeout=30)


@app.get("/healthz")
def healthz():
    """Say that it is there."""
    return {"status": "ok"}


@app.post("/webhooks/<source>")
def webhook(source):
    """Queue the event; a broker that is away is an error, and the sender comes again."""
    expected = hmac.new(SECRET, request.get_data(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, request.headers.get("X-Signature", "")):
        return {"error": "wrong signature"}, 401
    process_event.delay(request.get_json())
    return {"status": "queued"}, 202


@queue.task(autoretry_for=(Exception,), max_retries=RETRIES, default_retry_delay=RETRY_SECONDS)
def process_event(event):
    """Queue what the event is to become; when the broker goes away in the middle, from the beginning."""
    lead = event["lead"]
    make_call.delay(f"Call {lead['id']}", lead["phone"])
    team_task.delay(f"Meet {lead['id']}")
    if lead["late"]:
        whatsapp.apply_async((f"Late {lead['id']}", lead["phone"]), countdown=LATE_SECONDS)
    if lead["again"]:
        team_task.delay(f"Again {lead['id']}")


@queue.task(bind=True, max_retries=RETRIES)
def make_call(self, title, phone):
    """Have the lead called."""
    _post(self, f"{MINDHUNTERS_URL}/tasks", _mindhunters(title, phone, "make_call"), _BEARER)


@queue.task(bind=True, max_retries=RETRIES)
def whatsapp(self, title, phone):
    """Have a template sent to the lead."""
    data = {"message_type": "whatsapp_template", "template_uuid": TEMPLATE}
    _post(self, f"{MINDHUNTERS_URL}/tasks", _mindhunters(title, phone, "send_message") | {"task_data": data}, _BEARER)


@queue.task(bind=True, max_retries=RETRIES)
def team_task(self, title):
    """Give a person of the team something to do."""
    empty = dict.fromkeys(("description", "dueDate", "dueTime", "timezone", "aiContactId", "aiCustomerId"))
    task = {**empty, "title": title, "responsibleIds": [PERSON], "priority": "0"}
    _post(self, f"{VAMBE_URL}/tasks", task, {"x-api-key": VAMBE_API_KEY})


_BEARER = {"Authorization": f"Bearer {MINDHUNTERS_TOKEN}"}


def _mindhunters(title, phone, type_):
    at = datetime.now(UTC) + timedelta(seconds=60)
    return {
        "title": title,
        "type": type_,
        "agent_uuid": AGENT,
        "scheduled_at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "contact": {"phone_number": phone},
        "auto_queue": True,
    }


def _post(task, url, document, headers):
    try:
        http.post(url, json=document, headers=headers).raise_for_status()
    except httpx.HTTPError as error:
        raise task.retry(exc=error, countdown=RETRY_SECONDS) from None
