"""One run: a front door, a few workers, a broker, two providers, and a seed that decides what befalls them.

First come some minutes in which anything may happen, of the kinds that the seed has chosen; then all faults end and the
world goes on until it comes to rest. What was seen goes to the checker.
"""

from __future__ import annotations

import logging
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rules.loader import load
from rules.vocabulary import Contact, Event, LedgerError, ProviderName
from tests.faults.simulation.actors import STEP_LIMIT, Scheduler
from tests.faults.simulation.broker import Broker, Publisher
from tests.faults.simulation.checking import Record, Step, violations
from tests.faults.simulation.providers import MOODS, Line, Provider, mark_of, well
from tests.faults.simulation.waiting import Bulkhead, Closing, Pool
from tests.faults.simulation.witness import Door
from worker import providers
from worker.background import FollowUps, Sweeper
from worker.broker import EVENTS_QUEUE, QUEUE_OF
from worker.clock import Clock
from worker.context import AdaptiveBatchSize, ProviderClient, WorkerContext, limits_of
from worker.delivery import deliver
from worker.ledger import Delivery, IncomingEvent
from worker.planning import process_events
from worker.publisher import SINGLE_DELIVERY_LIMIT
from worker.reconciler import reconcilers
from worker.settings import Settings

BEGAN_AT = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
#: How long a world may take to come to rest after its faults have ended: a provider may have asked for a day, and a blind one
#: is asked for a day before its look-ups count; by then the rounds are hours apart.
REST_SECONDS = 96 * 3600.0

_PROVIDER_OF = {queue: name for name, queue in QUEUE_OF.items()}

RULES = """
version: 1
defaults: {timezone: America/Santiago}
rules:
  - id: big
    when: lead.created
    then:
      - make_call: {agent: aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa, title: "Call {{ contact.name }}"}
        retry: {delay: 20s, max_attempts: 2}
        on_failure:
          - team_task: {title: "Not called: {{ failure.title }}", assign: [cccccccc-cccc-4ccc-8ccc-cccccccccccc]}
      - team_task: {title: "Visit {{ contact.name }}", assign: [cccccccc-cccc-4ccc-8ccc-cccccccccccc]}
        retry: {strategy: exponential, delay: 5s, max_attempts: 4, jitter: full}
        if_unsure: repeat
  - id: greeting
    when: [lead.created, lead.updated]
    then:
      - whatsapp_template:
          agent: aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa
          template: bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb
          title: "Greet {{ contact.name }}"
          at: +40s
          expires: +10m
        retry: {delay: 10s, max_attempts: 3, jitter: 0}
  - id: deal
    when: deal.created
    then:
      - team_task: {title: "Offer {{ contact.name }}", assign: [cccccccc-cccc-4ccc-8ccc-cccccccccccc]}
"""

#: What each type of event leads to: (rule, name of the task). Written down here, and not asked of the rules.
EXPECTED = {
    "lead.created": {("big", "make_call"), ("big", "team_task"), ("greeting", "whatsapp_template")},
    "lead.updated": {("greeting", "whatsapp_template")},
    "deal.created": {("deal", "team_task")},
    "contact.created": set(),
}
#: What follows on a task's failure: the name of the task that does, by (rule, name) of the one that failed.
FOLLOWING = {("big", "make_call"): "make_call/team_task"}

#: The kinds of trouble; a seed takes some of them.
TROUBLES = ("deaths", "freezes", "broker", "moods", "jumps", "ledger", "redeliveries", "persons", "threads")


class Worker:
    """One worker process: its services, its threads, and its end."""

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.life = 0
        self.alive = False

    def start(self):
        """Begin a new life under a new name."""
        self.life += 1
        self.alive = True
        world = self.world
        self.name = f"w{self.number}.{self.life}"
        self.door = world.door(self.name)
        self.closing = Closing(world.scheduler)
        self.context = WorkerContext(
            settings=world.settings,
            ledger=self.door,
            publisher=Publisher(world.broker, world.draw),
            rule_set=world.rule_set,
            clients={name: self._client(name) for name in ProviderName},
            owner=self.name,
            limits=limits_of(world.settings),
            closing=self.closing,
            clock=world.clock,
        )
        world.scheduler.spawn(f"{self.name} begins", self.name, self._begin)

    def _client(self, name):
        world = self.world
        began = lambda request: world.began(self, request)  # noqa: E731 - one line each, side by side
        return ProviderClient(
            provider=providers.load(name),
            transport=Line(world.providers[name], world.scheduler, world.draw, began),
            bulkhead=Bulkhead(world.draw.choice((1, 2, 8)), world.scheduler),
            pool=Pool(world),
            batch_size=AdaptiveBatchSize(),
        )

    def _begin(self):
        """Do what `build_worker` does at a start, then have the threads run."""
        while True:
            try:
                self.context.ledger.limits.resume_rejected(self.world.clock.now())
                break
            except LedgerError:
                self.world.scheduler.sleep(1)
        for number in range(self.world.threads):
            self.world.scheduler.spawn(f"{self.name} thread {number}", self.name, self._consume)
        for name, part in self.world.parts_of(self.context):
            self.world.scheduler.spawn(f"{self.name} {name}", self.name, lambda part=part: self._beside(part))

    def _consume(self):
        world = self.world
        while True:
            queue, ids = world.broker.take()
            world.say(self.name, f"takes {queue} {' '.join(ids)}")
            world.scheduler.pause()
            try:
                if queue == EVENTS_QUEUE:
                    world.process(self.context, ids, lambda _type, outcomes: self._tell(outcomes), lambda _batch: None)
                else:
                    for outcome in world.deliver(self.context, _PROVIDER_OF[queue], ids, self._tell):
                        world.say(self.name, f"{outcome.task_id} {outcome.state}: {outcome.words}")
            except LedgerError as error:
                world.say(self.name, f"gives up: {error}")

    def _tell(self, _outcomes):
        self.world.scheduler.pause()

    def _beside(self, part):
        """Run a round of a part now and then, as its own thread would."""
        world = self.world
        while True:
            world.scheduler.sleep(world.draw.uniform(0.5, world.longest_pause_seconds))
            try:
                part.once()
            except LedgerError as error:
                world.say(self.name, f"a round ends: {error}")

    def kill(self):
        """End the process at once, wherever its threads are."""
        self.alive = False
        self.world.say(self.name, "is killed")
        self.world.scheduler.kill(self.name)
        self.world.broker.forget_waiting(self.name)


class World:
    """Everything of one run. `deliver` and `process` are what its workers do with tasks and events: the product's, or broken."""

    def __init__(self, seed, storage, *, deliver=deliver, process=process_events, trace=None):
        self.seed = seed
        self.deliver = deliver
        self.process = process
        self.trace = trace
        self.draw = random.Random(seed)
        self.storage = storage
        self.ledger = storage.fresh()
        self.scheduler = Scheduler(self.draw)
        self.skew = timedelta(0)
        #: The latest moment that the clock has shown before it was put back.
        self.latest = BEGAN_AT
        self.clock = Clock(
            now=lambda: BEGAN_AT + timedelta(seconds=self.scheduler.now) + self.skew,
            awake_seconds=lambda: self.scheduler.now,
            sleep=self.scheduler.sleep,
            chance=self.draw.random,
        )
        self.broker = Broker(self.scheduler, self.draw)
        self.providers = {name: Provider(name, self.scheduler, self.draw, BEGAN_AT) for name in ProviderName}
        self.rule_set = rule_set()
        self.record = Record(following=FOLLOWING)
        self.calm_since = None
        self.trouble = (0.0, 0.0)
        self.tasks_by_mark = {}
        self.doors = []
        self._choose()

    def _choose(self):
        draw = self.draw
        self.troubles = [trouble for trouble in TROUBLES if draw.random() < 0.6]
        self.threads = draw.choice((1, 2, 3))
        self.pause_seconds = draw.choice((4.0, 15.0, 30.0, 30.0))
        self.blind = draw.random() < 0.25
        for provider in self.providers.values():
            provider.blind = self.blind
        limits = {
            f"{name}_{limit}": draw.choice(choices)
            for name in ("mindhunters", "vambe")
            for limit, choices in (("rate", (0.0, 0.0, 0.2, 2.0)), ("concurrency", (0, 0, 1, 2)))
        }
        self.settings = Settings(home=Path("nowhere"), **limits)
        self.workers = [Worker(self, number) for number in range(draw.choice((1, 2, 2, 3)))]
        self.posts = [[(f"e{number}", draw.choice(tuple(EXPECTED)))] for number in range(draw.randint(1, 7))]
        if draw.random() < 0.3:  # a sender that gathers: enough for a worker to deliver them as it plans them
            number = draw.randint(SINGLE_DELIVERY_LIMIT + 1, 2 * SINGLE_DELIVERY_LIMIT)
            type_ = draw.choice(("deal.created", "lead.created"))
            self.posts.append([(f"m{place}", type_) for place in range(number)])

    # -- what everybody uses -------------------------------------------------------------------------------------------

    def say(self, who, words):
        """Add a line to the trace."""
        if self.trace is not None:
            self.trace(f"{self.scheduler.now:10.3f} {who:8} {words}")

    def door(self, who):
        """Return a process's way to the ledger, as busy as ledgers are at this moment."""
        door = Door(self.ledger, self.scheduler, self.draw, who, self)
        door.trouble(*self.trouble)
        self.doors.append(door)
        return door

    def saw(self, step):
        """Add a step to the history."""
        self.record.steps.append(step)
        if self.trace is not None:
            self.say(
                step.who, f"{step.kind} {step.task} epoch {step.epoch} {step.verdict}{'' if step.taken else ' late'}"
            )

    def began(self, worker, request):
        """Note that a request leaves a worker."""
        if request.method != "POST":
            return
        mark = mark_of(request)
        self.saw(Step(self.scheduler.now, "began", worker.name, self.tasks_by_mark.get(mark, mark)))
        if "freezes" in self.troubles and self.calm_since is None and self.draw.random() < 0.1:
            self._freeze(worker, 150.0)  # so that it learns its answer when its claim is long gone

    @property
    def longest_pause_seconds(self):
        """How long a part rests at the most between two rounds: longer and longer when all is calm."""
        more = 0.0 if self.calm_since is None else (self.scheduler.now - self.calm_since) / 5
        return self.pause_seconds + more

    def parts_of(self, context):
        """Return what runs in a worker beside its consumers."""
        seeking = [(f"seek {number}", seek) for number, seek in enumerate(reconcilers(context))]
        return [("sweep", Sweeper(context, self.broker)), ("react", FollowUps(context)), *seeking]

    # -- the front door ------------------------------------------------------------------------------------------------

    def _post(self, keys):
        """Play one sender, with the types of its events by their keys: post until they are acknowledged, and perhaps again."""
        draw, scheduler = self.draw, self.scheduler
        scheduler.sleep(draw.uniform(0, 60))
        door, number = self.door("front"), 0
        again = draw.randint(1, 3) if "redeliveries" in self.troubles else 1
        while again:
            number += 1
            now = self.clock.now()
            first = next(iter(keys))
            delivery = Delivery(
                id=f"dl_{first}_{number}", source="crm", received_at=now, body=b"{}", content_hash=first
            )
            try:
                recorded = door.inbox.record(delivery, [self._incoming(*pair, number, now) for pair in keys.items()])
            except LedgerError:
                scheduler.sleep(draw.uniform(0.1, 5))
                continue
            for key, type_ in keys.items():
                self.record.accepted[key] = EXPECTED[type_]
            self.say("front", f"accepts {keys} as {recorded.event_ids}")
            if draw.random() < 0.8:  # else the process dies between its answer and the message
                Publisher(self.broker, draw).events(recorded.event_ids)
            again -= 1
            scheduler.sleep(draw.uniform(0, 20))

    @staticmethod
    def _incoming(key, type_, number, now):
        event = Event(
            id=f"ev_{key}_{number}",
            source="crm",
            type=type_,
            occurred_at=now,
            received_at=now,
            contact=Contact(name=key, phone="+56911112222"),
            data={},
        )
        return IncomingEvent(event=event, dedupe_key=key, content_hash=key)

    # -- the course of a run -------------------------------------------------------------------------------------------

    def run(self):
        """Run to the end; returns what does not hold. What a worker logs of its troubles is not shown meanwhile."""
        log = logging.getLogger("worker")
        level_before = log.level
        log.setLevel(logging.CRITICAL)
        try:
            for worker in self.workers:
                worker.start()
            for post in self.posts:
                self.scheduler.spawn(f"sender {post[0][0]}", "front", lambda post=post: self._post(dict(post)))
            self._troubled(self.draw.uniform(30, 150))
            self._calm()
            rests = self._until_rest()
        finally:
            self.scheduler.close()
            log.setLevel(level_before)
        self._look(rests)
        return violations(self.record)

    def _troubled(self, seconds):
        acts = [getattr(self, f"_{trouble}") for trouble in self.troubles if hasattr(self, f"_{trouble}")]
        while self.scheduler.now < seconds:
            self.scheduler.sleep(self.draw.expovariate(0.2))
            if acts:
                self.draw.choice(acts)()

    def _calm(self):
        self.say("world", "all faults end")
        self.calm_since = self.scheduler.now
        if self.draw.random() < 0.5:
            self._jump(-self.skew)
        self.broker.loss = self.broker.doubling = self.broker.mixing = 0.0
        self.broker.back()
        for provider in self.providers.values():
            provider.mood = well
        self._set_busy(0.0, 0.0)
        now = self.clock.now()
        for provider in ProviderName:
            self.ledger.limits.resume(provider, now)
        for worker in self.workers:
            if not worker.alive:
                worker.start()

    def _until_rest(self):
        """Wait until nothing is left to be done; False when that never comes."""
        give_up_at = self.scheduler.now + REST_SECONDS
        while self.scheduler.now < give_up_at and self.scheduler.steps < STEP_LIMIT:
            self.scheduler.sleep(30)
            if not self._open() and not self._senders():
                return True
        return False

    def _senders(self):
        return len(self.record.accepted) < sum(len(post) for post in self.posts)

    def _open(self):
        asked = (
            "SELECT (SELECT count(*) FROM events WHERE state = 'received')"
            " + (SELECT count(*) FROM tasks WHERE state IN ('planned', 'queued', 'sending', 'waiting'))"
            " + (SELECT count(*) FROM doubts) + (SELECT count(*) FROM reactions) AS open"
        )
        return self.storage.rows(asked)[0]["open"]

    def _look(self, rests):
        record = self.record
        record.faults += self.scheduler.faults
        if not rests:
            record.faults.append("the world never came to rest")
        record.events = self.storage.rows("SELECT id, dedupe_key, state, reason FROM events ORDER BY seq")
        record.tasks = self.storage.rows("SELECT * FROM tasks ORDER BY seq")
        record.attempts = self.storage.rows("SELECT task_id, epoch, deferred FROM attempts ORDER BY task_id, epoch")
        record.doubts = {row["task_id"] for row in self.storage.rows("SELECT task_id FROM doubts")}
        record.effects = [effect for provider in self.providers.values() for effect in provider.effects]
        for task in record.tasks:
            self.say("ledger", f"{task['id']} {task['rule']}/{task['name']} {task['state']} {task['attempts']} tries")

    # -- troubles ------------------------------------------------------------------------------------------------------

    def _deaths(self):
        worker = self.draw.choice(self.workers)
        if not worker.alive:
            return
        worker.kill()
        name, told = worker.name, self.draw.random() < 0.5
        back_seconds = self.draw.choice((0.1, 3.0, 40.0))
        self.scheduler.spawn("supervisor", "supervisor", lambda: self._replace(worker, name, told, back_seconds))

    def _replace(self, worker, name, told, back_seconds):
        """Do what a supervisor does about a dead worker; nobody does the first part for one on another machine."""
        self.scheduler.sleep(back_seconds)
        while told:
            try:
                self.door("super").tasks.release(f"{name}/", self.clock.now())
                break
            except LedgerError:
                self.scheduler.sleep(1)
        if not worker.alive:
            worker.start()

    def _freezes(self):
        worker, seconds = self.draw.choice(self.workers), self.draw.choice((3.0, 20.0, 150.0))
        if worker.alive:
            self._freeze(worker, seconds)

    def _freeze(self, worker, seconds):
        self.say(worker.name, f"is frozen for {seconds} s")
        self.scheduler.freeze(worker.name, seconds)

    def _broker(self):
        draw, broker = self.draw, self.broker
        match draw.randrange(4):
            case 0:
                self.say("broker", "forgets everything")
                broker.forget()
            case 1:
                self.say("broker", "is out of reach")
                broker.reachable = False
                self.scheduler.at(self.scheduler.now + draw.choice((1.0, 20.0, 60.0)), broker.back)
            case _:
                broker.loss, broker.doubling, broker.mixing = (draw.choice((0.0, 0.3, 0.9)) for _ in range(3))

    def _moods(self):
        provider = self.draw.choice(tuple(self.providers.values()))
        provider.mood = self.draw.choice(MOODS)
        self.say(provider.name, f"is {provider.mood.__name__.replace('_', ' ')}")

    def _jumps(self):
        self._jump(timedelta(seconds=self.draw.choice((-7200, -3600, -60, -5, 5, 60, 3600, 7200))))

    def _jump(self, step):
        self.latest = max(self.latest, self.clock.now())
        self.skew += step
        self.say("clock", f"jumps by {step.total_seconds():.0f} s")

    def _ledger(self):
        busy, in_doubt = self.draw.choice((0.0, 0.05, 0.5)), self.draw.choice((0.0, 0.05))
        self.say("ledger", f"is busy {busy:.0%}, in doubt {in_doubt:.0%}")
        self._set_busy(busy, in_doubt)

    def _set_busy(self, busy, in_doubt):
        self.trouble = (busy, in_doubt)
        for door in self.doors:
            door.trouble(busy, in_doubt)

    def _persons(self):
        """Have an operator do something, as operators do: in the middle of it all."""
        now, draw = self.clock.now(), self.draw
        provider, tasks = draw.choice(tuple(ProviderName)), list(self.ledger.queries.list_tasks())
        match draw.randrange(4):
            case 0:
                self.ledger.limits.pause(provider, now + timedelta(seconds=30), "a person said so", now)
            case 1:
                self.ledger.limits.resume(provider, now)
            case 2 if tasks:
                self._by_hand(self.ledger.admin.cancel, draw.choice(tasks).id, "not wanted", now)
            case 3 if tasks:
                self._by_hand(self.ledger.admin.retry, draw.choice(tasks).id, now)

    def _by_hand(self, act, task_id, *more):
        try:
            task = act(task_id, *more)
        except LedgerError as error:
            self.say("person", f"cannot {act.__name__} {task_id}: {error}")
            return
        self.say("person", f"{act.__name__} {task_id}, which is {task.state}")
        self.saw(Step(self.scheduler.now, act.__name__, "person", task_id))


_BOOKS = []


def rule_set():
    """Return the rules of every run, read once."""
    if not _BOOKS:
        _BOOKS.append(load({"rules.yaml": RULES}, {}))
    return _BOOKS[0]
