"""How a provider is asked to cancel a task that it has, and what its answers mean."""

import json

import pytest

from worker.http import HttpClient
from worker.providers import Answered, NeverSent, NoAnswer, mindhunters, vambe
from worker.sandbox import MINDHUNTERS_TOKEN, Sandbox

CANCELLED = {"success": True, "message": "task cancelled", "data": {}}
REFUSED = {"success": False, "message": "a completed task cannot become cancelled", "error": {"code": "INVALID"}}
SECRET = {"success": False, "message": "token abc is wrong", "error": {"code": "UNAUTHORIZED"}}


def test_mindhunters_is_asked_by_the_id_of_the_task():
    """The id is one part of the path, whatever stands in it."""
    request = mindhunters.PROVIDER.cancel_request("x/../y?z")
    assert ("POST", "/tasks/x%2F..%2Fy%3Fz/cancel", None) == (request.method, request.path, request.json)


def test_vambe_has_no_such_call():
    """None is documented, so nothing is sent."""
    assert vambe.PROVIDER.cancel_request("x") is None


@pytest.mark.parametrize(
    ("sent", "taken", "words"),
    [
        (Answered(status=200, body=json.dumps(CANCELLED).encode()), True, "200"),
        (Answered(status=204), True, "204"),
        (Answered(status=200, body=json.dumps(REFUSED).encode()), False, "cannot become cancelled"),
        (Answered(status=409, body=json.dumps(REFUSED).encode()), False, "409 a completed task"),
        (Answered(status=500, body=b"<html>"), False, "500"),
        (NoAnswer(error="TimeoutError"), False, "may be cancelled all the same"),
        (NeverSent(error="ConnectionRefusedError"), False, "not sent: ConnectionRefused"),
    ],
)
def test_only_a_success_without_a_complaint_is_one(sent, taken, words):
    """Everything else leaves the task as it is, with the provider's words."""
    answer = mindhunters.PROVIDER.read_cancel(sent)
    assert taken is answer.taken
    assert words in answer.words


def test_words_about_a_credential_are_left_out():
    """They may quote it."""
    assert "401" == mindhunters.PROVIDER.read_cancel(Answered(status=401, body=json.dumps(SECRET).encode())).words


def test_a_real_answer_is_read():
    """A task that is not there is not cancelled; the answer says so."""
    sandbox = Sandbox()
    sandbox.start()
    transport = HttpClient(sandbox.mindhunters_url, mindhunters.PROVIDER.auth_headers(MINDHUNTERS_TOKEN))
    try:
        answer = mindhunters.PROVIDER.read_cancel(transport.send(mindhunters.PROVIDER.cancel_request("nobody")))
    finally:
        transport.close()
        sandbox.stop()
    assert (False, "404 no such task") == (answer.taken, answer.words)
