"""One process's door to the ledger: where it may die, be told that the ledger is busy, and where the history is written."""

from __future__ import annotations

from rules.vocabulary import LedgerBusyError, LedgerInDoubtError, TaskState
from tests.faults.simulation.checking import Step
from worker.ledger import Claim


class Door:
    """Passes every method of a ledger on; before and after each the process may give way, and be ended there."""

    def __init__(self, ledger, scheduler, draw, who, world, group=""):
        self._ledger = ledger
        self._group = group
        self._scheduler = scheduler
        self._draw = draw
        self._who = who
        self._world = world
        #: The chance that a call is refused, and that one is refused although it was written.
        self.busy = 0.0
        self.in_doubt = 0.0
        self._further = []

    def __getattr__(self, name):
        found = getattr(self._ledger, name)
        if callable(found):
            passed = self._passing(name, found)
        else:  # one of the ledger's groups of methods
            passed = Door(found, self._scheduler, self._draw, self._who, self._world, name)
            self._further.append(passed)
            passed.trouble(self.busy, self.in_doubt)
        setattr(self, name, passed)
        return passed

    def yield_to_writer(self):
        """Let others go first, as threads do while their process writes; it is never refused."""
        self._step()

    def trouble(self, busy, in_doubt):
        """Be refused so often from now on, here and in its groups."""
        self.busy, self.in_doubt = busy, in_doubt
        for door in self._further:
            door.trouble(busy, in_doubt)

    def _passing(self, name, method):
        note = getattr(self, f"_note_{self._group}_{name}", None)

        def call(*args, **kwargs):
            self._step()
            if self._draw.random() < self.busy:
                self._scheduler.sleep(self._draw.choice((0.0, 1.0, 15.0)))
                raise LedgerBusyError("simulated: the ledger was busy; nothing was written")
            result = method(*args, **kwargs)
            if note is not None:
                note(result, *args)
            self._step()
            if self._draw.random() < self.in_doubt:
                raise LedgerInDoubtError("simulated: it is not known whether it was written")
            return result

        return call

    def _step(self):
        """Give way at every other call: whoever goes on at once is a schedule too."""
        if self._draw.random() < 0.5:
            self._scheduler.pause()

    def see(self, kind, task_id, **more):
        """Add a step to the history."""
        self._world.saw(Step(self._scheduler.now, kind, self._who, task_id, **more))

    def _note_tasks_insert(self, _result, plans, _now):
        for plan in plans:
            for task in plan.tasks:
                self._world.record.planned.setdefault(task.id, task.due_at)

    def _note_tasks_insert_and_claim(self, result, plans, now, _terms):
        self._note_tasks_insert(result, plans, now)
        _, answers = result
        self._world.record.at_once += sum(isinstance(answer, Claim) for answer in answers)
        self._note_tasks_claim(answers, (), now)

    def _note_tasks_claim(self, result, _ids, now, *_):
        for claim in result:
            if isinstance(claim, Claim):
                self._world.tasks_by_mark[f"lw:{claim.task.key[:12]}"] = claim.task.id
                moments = {"due": claim.task.due_at, "wall": now, "latest": self._world.latest}
                self.see("claimed", claim.task.id, epoch=claim.epoch, **moments)

    def _note_tasks_settle_many(self, result, settled, *_):
        for (claim, settlement), taken in zip(settled, result, strict=True):
            verdict = str(settlement.verdict)
            self.see("settled", claim.task.id, epoch=claim.epoch, taken=taken, verdict=verdict)

    def _note_reconciliation_resolve(self, result, doubt, settlement, *_):
        if result and settlement.state is TaskState.WAITING and "if_unsure: repeat" in settlement.reason:
            self.see("repeated", doubt.task.id)

    def _note_tasks_give_back(self, result, claim, _now):
        if result:
            self.see("ended", claim.task.id, epoch=claim.epoch)

    def _note_tasks_give_back_of(self, result, *_):
        for task_id in result:
            self.see("ended", task_id)

    def _note_tasks_release(self, result, *_):
        for task_id in result:
            self.see("ended", task_id)

    def _note_tasks_expire_leases(self, result, *_):
        for task_id in result:
            self.see("ended", task_id)
