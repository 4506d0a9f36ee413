"""Posting a webhook to our own front door, signed as its sender would: what `leadwire send` and `leadwire demo` do."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import httpx

from console.samples import Sample
from ingress.sources.source import Source
from rules.vocabulary import Problem

TIMEOUT_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One signed request, which can be posted any number of times: a redelivery is the same bytes again."""

    url: str
    method: str
    headers: dict[str, str] = field(repr=False)
    query: dict[str, str] = field(repr=False)
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """What the front door answered."""

    status: int
    text: str

    @property
    def accepted(self) -> bool:
        """Whether the webhook was taken in."""
        return 200 <= self.status <= 299  # noqa: PLR2004 - the class of HTTP statuses


def sealed(source: Source, sample: Sample, front_door_url: str, now: datetime) -> Letter:
    """Sign a payload for a source. Raises Problem where only the real sender can sign."""
    url = f"{front_door_url.rstrip('/')}/webhooks/{source.name}"
    try:
        signed = source.sign(sample.body, sample.content_type, url, now)
    except ValueError as error:
        raise Problem(f"{front_door_url}: is no address such as http://127.0.0.1:8080: {error}") from error
    return Letter(
        url=url,
        method=signed.method,
        headers={**sample.headers, **signed.headers},
        query=dict(signed.query),
        content=signed.body,
    )


def post(letter: Letter) -> Posted:
    """Post a signed request. Raises Problem when nobody answers."""
    try:
        answer = httpx.request(
            letter.method,
            letter.url,
            params=letter.query or None,
            headers=letter.headers,
            content=letter.content,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )
    except httpx.ConnectError as error:
        raise Problem(f"nobody listens at {letter.url}: start `leadwire up`, or name the server with --url") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Problem(f"{letter.url}: {str(error) or type(error).__name__}") from error
    return Posted(status=answer.status_code, text=answer.text)
