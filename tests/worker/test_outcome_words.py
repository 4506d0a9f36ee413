"""What Mindhunters' answer about one task says of how it stands."""

import json

import pytest

from worker.providers import Answered, CannotTell, NeverSent, NoAnswer, TaskStatus
from worker.providers.mindhunters import PROVIDER


def answered(body, status=200):
    """Return what the provider says of the task x-1."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return PROVIDER.read_outcome(Answered(status=status, body=data), "x-1")


def test_one_task_is_asked_about_by_its_id():
    """The id stands in the path, so that nothing in it can lead elsewhere."""
    request = PROVIDER.outcome_request("x-1/../y?z")

    assert ("GET", "/tasks/x-1%2F..%2Fy%3Fz", None) == (request.method, request.path, request.json)


@pytest.mark.parametrize("word", ["completed", "failed", "cancelled", "expired", "Failed"])
def test_a_documented_end_is_final(word):
    """Four of the documented statuses end a task, however they are written."""
    assert TaskStatus(word=word.lower(), final=True) == answered({"data": {"uuid": "x-1", "status": word}})


@pytest.mark.parametrize("word", ["pending", "scheduled", "queued", "in_progress", "on_hold", "snoozed", "no_answer"])
def test_any_other_word_is_told_as_it_is(word):
    """On the way, on hold, or a word that no page prints: it is kept, and nothing is made of it."""
    assert TaskStatus(word=word, final=False) == answered({"data": {"uuid": "x-1", "status": word}})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[" * 5000,
        [],
        {},
        {"data": None},
        {"data": []},
        {"data": {"status": None}},
        {"data": {"status": " "}},
        {"data": {"status": ["failed"]}},
        {"data": {"uuid": "x-2", "status": "failed"}},
        {"data": {"uuid": ["x-1"], "status": "failed"}},
    ],
)
def test_an_answer_in_another_form_tells_nothing(body):
    """What cannot be read, or is about another task, is no outcome."""
    assert isinstance(answered(body), CannotTell)


@pytest.mark.parametrize("status", [201, 204, 302, 401, 403, 404, 422, 429, 500, 503])
def test_only_a_200_tells_anything(status):
    """Whatever a body says beside another status is not believed."""
    assert isinstance(answered({"data": {"uuid": "x-1", "status": "failed"}}, status), CannotTell)


@pytest.mark.parametrize("sent", [NeverSent(error="refused"), NoAnswer(error="timed out")])
def test_no_answer_tells_nothing(sent):
    """A question that was not answered is asked again."""
    assert isinstance(PROVIDER.read_outcome(sent, "x-1"), CannotTell)


def test_a_foreign_word_is_made_fit_to_be_shown():
    """A word is one short line without control characters, whatever was sent."""
    told = answered({"data": {"status": "on\nhold\x07" + "!" * 500}})

    assert isinstance(told, TaskStatus)
    assert told.word.startswith("on hold !")
    assert 60 == len(told.word)
