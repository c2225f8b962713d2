"""A state machine over the Python API: whatever is called in whatever order, nothing is lost."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from celery.exceptions import Ignore, Retry
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from redis_batches import DuplicateTaskId, SimpleRequest
from redis_batches.testing.clock import Clock
from redis_batches.testing.worker import in_process
from redis_batches.upkeep.sweeper import Served, Sweeper

FATES = st.sampled_from(["return", "return", "succeed", "fail", "retry", "requeue", "raise"])
FLUSH_EVERY, MAX_RETRIES = 3, 2


class Wrong(Exception):
    """What the function raises; the task retries it."""


class Lifecycle(RuleBasedStateMachine):
    """Calls, doorbells, sweeps and time, against a model of what each call must come to."""

    def __init__(self) -> None:
        super().__init__()
        self.logger = logging.getLogger("celery")
        self.level = self.logger.level
        self.logger.setLevel(logging.CRITICAL)
        self.context = in_process(
            self.function,
            FLUSH_EVERY,
            autoretry_for=(Wrong,),
            max_retries=MAX_RETRIES,
            default_retry_delay=5,
        )
        self.here = self.context.__enter__()
        self.task = self.here.task
        self.clock = Clock()
        store = self.task.inspector._store
        store._redis.clock = self.clock
        self.store = store
        self.sweeper = Sweeper(lambda: [Served(store, self.task.trigger)], self.ring, interval=1.0)
        #: Ids that were accepted and not settled, with the fate that their argument says.
        self.open: dict[str, str] = {}
        self.settled: dict[str, str] = {}
        #: Ids that used all their retries, and were not called again.
        self.dead: set[str] = set()

    def ring(self, task: str, bells: Any) -> None:
        """Keeps the doorbells of the sweeper."""
        self.here.bells += [bells] * bells.count

    def function(self, requests: list[SimpleRequest]) -> list[Any]:
        """Does to each request what its argument says."""
        assert 1 <= len(requests) <= FLUSH_EVERY
        assert len({request.id for request in requests}) == len(requests)
        assert {request.id for request in requests} <= self.open.keys(), "a settled one runs"
        for request in requests:
            self.decide(request, request.args[0])
        rest = [request for request in requests if request.settler.batch.find(request.id)]
        raises = any(request.args[0] == "raise" for request in rest)
        for request in rest:
            if not raises:
                self.settle(request, "SUCCESS")
            elif request.retries >= MAX_RETRIES:
                self.settle(request, "FAILURE")
                self.dead.add(request.id)
        if raises:
            raise Wrong
        return [request.args[0] for request in requests]

    def decide(self, request: SimpleRequest, fate: str) -> None:
        """Settles a request before the function returns, if it says so."""
        if fate == "succeed":
            request.succeed(fate)
            self.settle(request, "SUCCESS")
        elif fate == "fail":
            request.fail(ValueError(fate))
            self.settle(request, "FAILURE")
        elif fate == "retry":
            exhausted = request.retries >= MAX_RETRIES
            request.retry()
            if exhausted:
                self.settle(request, "FAILURE")
                self.dead.add(request.id)
        elif fate == "requeue":
            self.task.apply_async(("return",), task_id=request.id)
            self.open[request.id] = "return"

    def settle(self, request: SimpleRequest, state: str) -> None:
        """Notes what the caller must be told."""
        del self.open[request.id]
        self.settled[request.id] = state

    @initialize()
    def begin(self) -> None:
        """Starts with nothing."""
        assert self.store.stats()["waiting"] == 0

    @rule(fate=FATES)
    def call(self, fate: str) -> None:
        """Calls the task."""
        self.open[self.task.delay(fate).id] = fate

    @rule(fate=FATES, number=st.integers(0, 3))
    def call_with_an_id(self, fate: str, number: int) -> None:
        """Calls it with an id that may wait already, or may have run."""
        task_id = f"chosen-{number}"
        try:
            self.task.apply_async((fate,), task_id=task_id)
        except DuplicateTaskId:
            assert task_id in self.open
        else:
            assert task_id not in self.open
            self.open[task_id] = fate
            self.settled.pop(task_id, None)
            self.dead.discard(task_id)
            self.task.AsyncResult(task_id).forget()

    @rule(force=st.booleans())
    def answer(self, force: bool) -> None:
        """Answers a doorbell, if there is one."""
        if self.here.bells:
            with suppress(Ignore, Retry, Wrong):
                self.here.answer(force=force)

    @rule()
    def lose_a_doorbell(self) -> None:
        """The broker lost it."""
        if self.here.bells:
            self.here.bells.pop(0)

    @rule(seconds=st.sampled_from([0.1, 3, 11]))
    def wait(self, seconds: float) -> None:
        """Time passes, and somebody sweeps."""
        self.clock.advance(int(seconds * 1000))
        self.sweeper.tick()

    @invariant()
    def nothing_is_lost(self) -> None:
        """What was accepted and not settled is stored, dead letters are, and nothing else."""
        stats = self.store.stats()
        assert stats["waiting"] == len(self.open)
        assert (stats["running"], stats["dead"]) == (0, len(self.dead))
        assert self.store.ledger()[0] == self.store.ledger()[1]

    @invariant()
    def each_caller_was_told(self) -> None:
        """Its own outcome."""
        for task_id, state in self.settled.items():
            assert self.task.AsyncResult(task_id).state == state

    def teardown(self) -> None:
        """Lets everything run that waits: in the end nothing does."""
        for _ in range(400):
            if not self.open:
                break
            self.wait(11)
            while self.here.bells:
                self.answer(force=False)
        self.context.__exit__(None, None, None)
        self.logger.setLevel(self.level)
        assert not self.open


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
