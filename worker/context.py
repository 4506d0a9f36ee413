"""The objects a worker process works with, and how they are built.

Only this module constructs them; everything else gets them passed in.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from pydantic import SecretStr

from rules.rule_set import RuleSet
from rules.vocabulary import ProviderName, SettingsError
from worker import providers
from worker.broker import celery_app
from worker.clock import Clock, utc_now
from worker.http import HttpClient
from worker.ledger import Ledger, Limits, open_ledger
from worker.providers import Provider
from worker.publisher import IDS_PER_MESSAGE, Publisher
from worker.rule_sets import WORKER_SECTIONS, rules_in_force
from worker.settings import Settings, broker_of

#: Requests that a worker has on the way to one provider at the same time, of tasks that were claimed in one transaction.
CONCURRENT_REQUESTS: Final = 8
#: How long the worker's writes let those of the ingress go first: whoever posts waits for an answer, an outcome is known already.
YIELD_TO_INGRESS: Final = timedelta(milliseconds=25)
#: So many events are planned, or tasks claimed, in one write; see `YIELDING_GROUP_SIZE` in `worker/ledger/writer.py`.
ROWS_PER_WRITE: Final = 64
#: Tasks that were claimed together and answered within this let the next claim be twice as large.
QUICK_SECONDS: Final = 0.5
#: How long everybody waits for a place in the bulkhead of a provider that answers quickly, new work and old alike.
QUICK_PATIENCE_SECONDS: Final = 1.0
#: How long a provider is taken to have as many requests as it may have at once, after the ledger said so.
FULL_SECONDS: Final = 1.0


class Bulkhead:
    """Bounds how many threads of this worker one provider may hold (`size`), so that a slow one never holds them all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._waiting = 0
        self._changed = threading.Condition()

    def acquire(self, patience_seconds: float) -> bool:
        """Take a place; returns False when none was free within `patience_seconds`. Give it back with `release`.

        With 0 seconds the caller does not overtake those who wait.
        """
        with self._changed:
            if not patience_seconds and self._waiting:
                return False
            self._waiting += 1
            try:
                if not self._changed.wait_for(lambda: self._free > 0, timeout=patience_seconds):
                    return False
            finally:
                self._waiting -= 1
            self._free -= 1
            return True

    def release(self) -> None:
        """Give a place back."""
        with self._changed:
            self._free += 1
            self._changed.notify()

    @property
    def free(self) -> int:
        """Return how many places are free now."""
        return self._free


@dataclass(slots=True)
class AdaptiveBatchSize:
    """How many tasks of one provider are claimed at once: as many as it was seen to answer within a short time.

    Each claim costs a sync to disk, but all claimed tasks must start soon. Threads share it without a lock: any of the values
    they write was right a moment ago.
    """

    size: int = CONCURRENT_REQUESTS
    #: Until when, by `Clock.awake_seconds`, the provider is taken to have as many requests as it may have at once.
    full_until_seconds: float = 0.0

    def note_full(self, now_seconds: float) -> None:
        """Remember, for a short time, that the provider is at its concurrency limit."""
        self.full_until_seconds = now_seconds + FULL_SECONDS

    def reset(self) -> None:
        """Return to the initial batch size."""
        self.size = CONCURRENT_REQUESTS

    def note(self, answered: int, seconds: float) -> None:
        """Adapt to a batch of `answered` tasks that took this many seconds."""
        if seconds > QUICK_SECONDS:
            self.reset()
        elif answered >= self.size:
            self.size = min(2 * self.size, IDS_PER_MESSAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderClient:
    """One provider with what this worker needs to call it."""

    provider: Provider
    transport: HttpClient
    bulkhead: Bulkhead
    #: Sends concurrently what was claimed together.
    pool: ThreadPoolExecutor
    batch_size: AdaptiveBatchSize

    def acquire(self, patience_seconds: float) -> bool:
        """Take a place in the bulkhead; waits longer for a provider that answers quickly, because a place is then free soon."""
        is_quick = self.batch_size.size > CONCURRENT_REQUESTS
        return self.bulkhead.acquire(max(patience_seconds, QUICK_PATIENCE_SECONDS) if is_quick else patience_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Everything that one worker process works with. `owner` is the name under which it claims tasks."""

    settings: Settings
    ledger: Ledger
    publisher: Publisher
    rule_set: RuleSet
    clients: Mapping[ProviderName, ProviderClient]
    owner: str
    #: Set when the process is to end: waits inside an attempt give up early.
    closing: threading.Event = field(default_factory=threading.Event)
    clock: Clock = field(default_factory=Clock)
    limits: Mapping[ProviderName, Limits] = field(default_factory=dict)
    _claim_numbers: Iterator[int] = field(default_factory=itertools.count)

    def limits_for(self, client: ProviderClient) -> Limits:
        """Return the provider's limits, which hold for all workers together."""
        return self.limits.get(client.provider.name, Limits())

    def new_claim_owner(self) -> str:
        """Return an owner name for a single claim, by which that claim can be undone when its commit is in doubt."""
        return f"{self.owner}/{next(self._claim_numbers)}"

    def close(self) -> None:
        """Close everything, the ledger last."""
        self.closing.set()
        self.publisher.close()
        for client in self.clients.values():
            client.pool.shutdown(wait=True, cancel_futures=True)
            client.transport.close()
        self.ledger.close()


def build_worker(settings: Settings, *, owner: str) -> WorkerContext:
    """Build the context of one worker process. Raises Problem that lists everything missing."""
    broker_url = broker_of(settings)
    credentials = _credentials(settings)
    ledger = open_ledger(settings.database_url, yielding=YIELD_TO_INGRESS)
    ledger.limits.resume_rejected(utc_now())
    rule_set = rules_in_force(settings.rules, ledger, settings.environment, resolve=WORKER_SECTIONS, now=utc_now())
    return WorkerContext(
        settings=settings,
        ledger=ledger,
        publisher=Publisher(celery_app(broker_url)),
        rule_set=rule_set,
        clients={
            name: _client(name, url, credential, threads=max(1, settings.worker_threads // 2))
            for name, (url, credential) in credentials.items()
        },
        owner=owner,
        limits=limits_of(settings),
    )


def limits_of(settings: Settings) -> Mapping[ProviderName, Limits]:
    """Return the limits of each provider from the settings; they hold for all workers together."""
    found = {}
    for name in ProviderName:
        rate, concurrency, daily_cap = (
            getattr(settings, f"{name}_{limit}") for limit in ("rate", "concurrency", "daily_cap")
        )
        found[name] = Limits(
            rate_per_second=rate, burst=max(1, math.ceil(rate)), concurrency=concurrency, daily_cap=daily_cap
        )
    return found


def reach(settings: Settings, name: ProviderName) -> tuple[Provider, HttpClient]:
    """Return a provider and an HTTP client for it, for a command that sends it a request. Raises SettingsError."""
    url, credential = _credentials(settings, [name])[name]
    provider = providers.load(name)
    return provider, HttpClient(url, provider.auth_headers(credential.get_secret_value()))


def _credentials(
    settings: Settings, names: Iterable[ProviderName] = ProviderName
) -> Mapping[ProviderName, tuple[str, SecretStr]]:
    """Return URL and credential of these providers; raises SettingsError naming all that is missing."""
    fields = {
        ProviderName.MINDHUNTERS: ("mindhunters_url", "mindhunters_token"),
        ProviderName.VAMBE: ("vambe_url", "vambe_api_key"),
    }
    found = {name: tuple(getattr(settings, field) for field in fields[name]) for name in names}
    unset = [
        field for name, values in found.items() for field, value in zip(fields[name], values, strict=True) if not value
    ]
    if unset:
        variables = ", ".join(f"LEADWIRE_{field.upper()}" for field in unset)
        raise SettingsError(f"not set: {variables}: the provider cannot be reached without it")
    return {name: (url, credential) for name, (url, credential) in found.items()}


def _client(name: ProviderName, url: str, credential: SecretStr, *, threads: int) -> ProviderClient:
    provider = providers.load(name)
    return ProviderClient(
        provider=provider,
        transport=HttpClient(url, provider.auth_headers(credential.get_secret_value())),
        bulkhead=Bulkhead(threads),
        batch_size=AdaptiveBatchSize(),
        pool=ThreadPoolExecutor(CONCURRENT_REQUESTS, thread_name_prefix=f"send-{name}"),
    )
