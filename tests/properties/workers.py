"""Those who run batches, and die or sleep at any line."""

from __future__ import annotations

from dataclasses import dataclass, field

from redis_batches.buffer.lease import Lease
from redis_batches.core.errors import LeaseLost
from redis_batches.core.outcomes import Idle, Outcome, Verb
from redis_batches.core.requests import Claimed, Status
from redis_batches.core.triggers import Trigger
from tests.properties.world import GROUPS, LEASE, SECOND, Call, Doorbell, World
from tests.support.state import ensure

#: A request that killed its worker so often, alone in its batch, is not run again.
MAX_CRASHES_ALONE = 3
#: A request that was put back so often for no cause outside it is not run again.
MAX_PUT_BACKS = 3


@dataclass
class Run:
    """A batch in the hands of a worker.

    Attributes:
        lease: What it holds.
        todo: Requests without an outcome.
        hopeless: Requests that must not run, and whose callers must be told so.
        revoked: Requests whose callers must be told that they were revoked.
        finished: Ids of requests whose callers were told, not yet acked.
        given_back: What is to be released.
        started: Whether its function was called.
        asleep_until: When its worker wakes, in ms.
    """

    lease: Lease
    todo: list[tuple[Claimed, Call]] = field(default_factory=list)
    hopeless: list[tuple[Claimed, Call]] = field(default_factory=list)
    revoked: list[tuple[Claimed, Call]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    given_back: list[Outcome] = field(default_factory=list)
    started: bool = False
    asleep_until: int = 0


class Workers:
    """Any number of workers; each runs one batch."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.fence = 0
        self.runs: list[Run] = []

    # -- Claiming

    def answer(self) -> None:
        """A worker gets a doorbell, not always the oldest, and claims a batch."""
        world = self._world
        if not world.broker:
            return
        index = world.rng.randrange(min(len(world.broker), 5))
        bell = world.broker[index]
        if not world.happens("doubled_bell"):
            del world.broker[index]
        trigger = world.trigger()
        lease = world.store.claim(
            bell.group,
            trigger,
            token=world.name("token"),
            bell=bell.id,
            rung_ms=bell.rung_ms,
            limit=world.weather.limit,
            once=world.weather.once,
            force=bell.force,
        )
        if isinstance(lease, Idle):
            return
        self._check_batch(lease, trigger, bell)
        if not world.dies():
            world.ring("", lease.bells)
            self._open(lease)

    def _check_batch(self, lease: Lease, trigger: Trigger, bell: Doorbell) -> None:
        """A batch is the head of the list, within the limits, and due; its fence has grown."""
        world, size = self._world, len(lease.requests)
        pending = world.state.pending[lease.group]
        ids = [request.id for request in lease.requests]
        if self._world.store.disturbed:
            self.fence = max(self.fence, lease.fence)
            return
        ensure(ids == [entry.id for entry in pending[:size]], "not the oldest", ids)
        ensure(1 <= size <= trigger.flush_every, "too many", ids, trigger)
        weight, most = sum(map(self._weight, ids)), world.store.settings.flush_bytes
        ensure(weight <= most or size == 1, "too many bytes", weight)
        cut = len(pending) > size and weight + self._weight(pending[size].id) > most
        due = pending[0].is_due(trigger.interval_ms, world.now_ms)
        ensure(size == trigger.flush_every or cut or due or bell.force, "before its time", ids)
        ensure(lease.fence > self.fence, "the fence has not grown", lease.fence)
        self.fence = lease.fence

    def _weight(self, task_id: str) -> int:
        return self._world.state.items[task_id].weight

    def _open(self, lease: Lease) -> None:
        """Sorts out what an earlier run has settled, and what must not run again."""
        run = Run(lease)
        for request in lease.requests:
            call = self._world.call_of(request.envelope)
            if request.attempts.number > 1 and len(call.told) > call.again:
                run.finished.append(request.id)
                continue
            if request.attempts.revoked:
                run.revoked.append((request, call))
            elif self._is_hopeless(request):
                run.hopeless.append((request, call))
            else:
                run.todo.append((request, call))
        self.runs.append(run)

    def _is_hopeless(self, request: Claimed) -> bool:
        """Whether a request is given up, and its caller told so."""
        attempts = request.attempts
        ensure(attempts.put_backs <= MAX_PUT_BACKS, "put back for ever", request)
        crashed = attempts.lost or attempts.alone >= MAX_CRASHES_ALONE
        return crashed or attempts.put_backs >= MAX_PUT_BACKS

    def discard(self, lease: Lease) -> None:
        """Somebody who revokes holds requests: they tell in their own time, or die."""
        ensure(all(request.attempts.revoked for request in lease.requests), "not marked", lease)
        if not self._world.dies():
            self._open(lease)

    # -- Running

    def work(self) -> None:
        """A worker goes on with its batch for a bit, dies, or falls asleep."""
        world = self._world
        awake = [run for run in self.runs if run.asleep_until <= world.now_ms]
        if not awake:
            return
        run = world.rng.choice(awake)
        if world.dies():
            self._die(run)
        elif world.happens("nap"):
            nap_ms = world.rng.choice((SECOND, LEASE * SECOND, 100 * SECOND))
            run.asleep_until = world.now_ms + nap_ms
        else:
            self.go_on(run)

    def go_on(self, run: Run) -> None:
        """Does the next thing that is to be done with a batch."""
        try:
            if not run.started:
                self._start(run)
            elif run.hopeless or run.revoked or run.todo:
                self._decide(run)
            elif run.given_back:
                for bells in run.lease.release(run.given_back):
                    self._world.ring_if_alive(bells)
                run.given_back = []
            else:
                run.lease.ack(run.finished, ends=True, well=self._world.rng.random() < 0.5)
                self.runs.remove(run)
        except LeaseLost:
            self._give_up(run)

    def _die(self, run: Run) -> None:
        """A worker dies; some deaths are seen, and the batch is taken back at once."""
        world, lease = self._world, run.lease
        self.runs.remove(run)
        if world.rng.random() < 0.3:
            bells = world.store.reclaim(lease.token, lease.group, world.trigger(), seen_dead=True)
            world.ring("", bells)

    def _give_up(self, run: Run) -> None:
        """A worker learns that it has lost its lease: it has not changed anything."""
        ensure(self._world.read() == self._world.state, "a dead token changed something")
        self.runs.remove(run)

    def _start(self, run: Run) -> None:
        """The function is called, unless its worker stalled past its lease after the claim."""
        if not run.lease.extend():
            self._give_up(run)
            return
        run.started = True
        for _, call in run.todo:
            call.runs += 1
            once = not self._world.weather.once or call.runs <= call.allowed
            ensure(once, "it ran twice, though its task runs at most once", call)
            allowed = call.revoked is None or run.lease.fence <= call.revoked
            ensure(allowed, "it runs though it was revoked", call)
        killers = [call for _, call in run.todo if call.poison]
        if killers:
            for call in killers:
                call.crashes += 1
            self._world.played["death"] += 1
            self._die(run)

    def _decide(self, run: Run) -> None:
        """The function settles a few of its requests."""
        rng = self._world.rng
        if rng.random() < 0.05 and run.todo and run.lease.token not in self._world.state.claims:
            self._call_again_too_late(run)
            return
        if not run.lease.extend():
            self._give_up(run)
            return
        for request, call in run.hopeless:
            self._bury(run, request, call)
        run.hopeless = []
        for request, call in run.revoked:
            call.told.append("revoked")
            run.finished.append(request.id)
        run.revoked = []
        for _ in range(rng.choice((1, 2, 5, 100))):
            if run.todo:
                self._settle(run, *run.todo.pop())
        if run.finished and rng.random() < 0.2:
            run.lease.ack(run.finished)
            run.finished = []

    def _settle(self, run: Run, request: Claimed, call: Call) -> None:
        rng = self._world.rng
        verbs = ("succeed", "retry", "retry_batch", "put_back", "postpone", "dead", "call_again")
        weights = (16, 2, 2, 2, 2, 1, 2) if self._world.faults else (1, 0, 0, 0, 0, 0, 0)
        (verb,) = rng.choices(verbs, weights)
        if self._world.happens("slip"):
            # Something broke in between deciding and noting it: its batch ends without it.
            return
        if verb == "succeed":
            call.told.append("success")
            run.finished.append(request.id)
        elif verb == "dead":
            self._bury(run, request, call)
        elif verb == "call_again":
            self._call_again(run, call)
        else:
            call.allowed += 1
            call.moved = True
            delay_ms = rng.choice((0, 0, SECOND, 60 * SECOND))
            run.given_back.append(Outcome(request.id, Verb(verb), delay_ms, "RuntimeError()"))

    def _bury(self, run: Run, request: Claimed, call: Call) -> None:
        call.told.append("failure")
        run.given_back.append(Outcome(request.id, Verb.DEAD, error="RuntimeError()"))

    def _call_again(self, run: Run, call: Call) -> None:
        """The function calls the task with the id of one of its requests: that is its retry."""
        world = self._world
        call.allowed += 1
        call.moved = True
        call.nonce, call.group = world.name("again"), world.rng.choice(GROUPS)
        call.sent_ms = world.elapsed_ms
        call.eta_ms = world.rng.choice((None, None, world.now_ms + 5 * SECOND))
        pushed = world.store.push(
            call.group, world.trigger(), [call.outgoing()], caller=run.lease.token
        )
        ensure(pushed.statuses[0] in (Status.NEW, Status.AGAIN), "not retried", pushed, call)
        world.ring_if_alive(pushed.bells)

    def _call_again_too_late(self, run: Run) -> None:
        """It does so after it has lost its lease: what waits or runs elsewhere is left alone."""
        world = self._world
        _, call = run.todo[-1]
        if call.id not in world.state.items or world.state.is_dead(call.id):
            return
        late = call.outgoing()
        late = type(late)(late.id, world.name("again"), None, late.envelope)
        (status,) = world.store.push(
            call.group, world.trigger(), [late], caller=run.lease.token
        ).statuses
        refused = status in (Status.DUPLICATE, Status.FORGOTTEN)
        ensure(refused, "retried by a dead batch", status, call)
        self._give_up(run)
