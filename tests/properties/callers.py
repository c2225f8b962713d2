"""Those outside the batches: who calls the task, and the operator of its dead letters."""

from __future__ import annotations

from redis_batches.core.outcomes import Place
from redis_batches.core.requests import Pushed, Status
from redis_batches.core.settings import DEDUPLICATION_WINDOW_MS
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.operate.inspector import Inspector
from redis_batches.operate.revoke import Canceller
from tests.properties.workers import Workers
from tests.properties.world import GROUPS, SECOND, Call, World
from tests.support.state import ensure


class Callers:
    """Producers and an operator.

    Args:
        world: What everybody shares.
        workers: Where what a revoke leased is settled, step by step, or is left alone.
    """

    def __init__(self, world: World, workers: Workers) -> None:
        self._world = world
        self._workers = workers

    def push(self) -> None:
        """Somebody calls the task, once or several times in one go."""
        world, rng = self._world, self._world.rng
        group = rng.choice(GROUPS)
        calls = [self._new_call() for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 20)))]
        for call in calls:
            call.group = group
        outgoing = [call.outgoing(rng.choice((0, 20, 120, 400))) for call in calls]
        trigger, before = world.trigger(), world.state.bells.get(group.id)
        pushed = world.store.push(group, trigger, outgoing)
        self._check_bells(pushed, trigger, before)
        for call, status in zip(calls, pushed.statuses, strict=True):
            self._check(call, status)
            if status in (Status.NEW, Status.AGAIN):
                world.calls[call.serial] = call
        world.ring_if_alive(pushed.bells)

    def _check_bells(self, pushed: Pushed, trigger: Trigger, before: str | None) -> None:
        """What is too few for whoever answered last is not rung for, until it is due."""
        entries = self._world.read().lists[pushed.bells.group]
        fills = max(trigger.flush_every, int((before or "0").rpartition(":")[2]))
        if entries and len(entries) < fills:
            due = entries[0].is_due(trigger.interval_ms, self._world.now_ms)
            ensure(due or not pushed.bells.count, "rung for nothing", pushed, before)

    def _new_call(self) -> Call:
        world, rng = self._world, self._world.rng
        serial = next(world.serials)
        call = Call(serial, f"id-{serial}", "", GROUPS[0], poison=world.draw(0.01))
        call.sent_ms = world.elapsed_ms
        if world.calls and rng.random() < 0.05:
            call.id, call.nonce = rng.choice(list(world.calls.values())).id, world.name("nonce")
        if rng.random() < 0.1:
            call.eta_ms = world.now_ms + rng.choice((-SECOND, SECOND, 20 * SECOND))
            call.moved = True
        return call

    def _check(self, call: Call, status: Status) -> None:
        """The id of what waits or runs is a duplicate; any other is new, while there is room."""
        world = self._world
        taken = call.id in world.state.items and not world.state.is_dead(call.id)
        if status is Status.DUPLICATE:
            ensure(call.nonce, "the first call with an id is no duplicate", call)
        elif status is Status.FULL:
            ensure(world.read().waiting >= world.store.settings.max_pending, "not full", call)
        elif status is Status.FORGOTTEN:
            ensure(world.weather.lost_reply > 0, "forgotten, though it was sent once", call)
            stored = world.read().items.get(call.id)
            kept = stored and world.serial_of(stored.envelope) == call.serial
            ensure(not kept, "stored, though its caller was told that nobody knows", call)
        else:
            ensure(not taken, "accepted beside another one", call)
            sent_twice = world.weather.lost_reply > 0
            ensure(status is Status.NEW or (sent_twice and status is Status.AGAIN), status, call)

    def push_again(self) -> None:
        """A call that was accepted is sent once more: it never runs again, however late it is."""
        world = self._world
        calls = [call for call in world.calls.values() if not call.lost and not call.again]
        if not calls:
            return
        call = world.rng.choice(calls)
        if call.ended_step is not None:
            latest_ms = max(world.times[call.ended_step :])
            # By a clock that was set forward, everything ended long ago.
            set_forward = latest_ms - world.times[call.ended_step] >= DEDUPLICATION_WINDOW_MS
            if call.forgotten or (world.weather.clock_jumps and set_forward):
                return
        world.played["late_call"] += 1
        age_ms = world.elapsed_ms - call.sent_ms + 1
        pushed = world.store.push(
            call.group, world.trigger(), [call.outgoing()], age=lambda: age_ms
        )
        (status,) = pushed.statuses
        allowed = (Status.AGAIN, Status.DONE, Status.FORGOTTEN)
        ensure(status in allowed, "a call arrived again", status, call)
        world.played["refused"] += status is Status.FORGOTTEN
        ensure(world.read() == world.state, "a call that arrived again changed something", call)

    def flush(self) -> None:
        """Somebody wants what waits to run now."""
        group = self._world.rng.choice(GROUPS)
        self._world.ring("", Bells(group.id, group.route, 1, 0), force=True)

    def operate(self) -> None:
        """An operator lets a dead letter run again, or drops it."""
        world = self._world
        letters = sorted(member.partition(":")[2] for member in world.state.dead)
        if not letters:
            return
        task_id = world.rng.choice(letters)
        if world.rng.random() < 0.5:
            self._inspector().drop([task_id])
            return
        call = world.call_of(world.state.items[task_id].envelope)
        call.again += 1
        call.allowed += 1
        call.moved = True
        call.revoked = None
        self._inspector().requeue([task_id])

    def revoke(self) -> None:
        """Somebody revokes calls that wait, are delayed, run, ended, or were never made."""
        world, rng = self._world, self._world.rng
        ids = {call.id for call in rng.sample(list(world.calls.values()), min(3, len(world.calls)))}
        ids |= set(rng.sample(sorted(world.state.items), min(2, len(world.state.items))))
        canceller = Canceller(world.store, world.trigger(), self._workers.discard)
        places = canceller.cancel([*sorted(ids), "nobody"])
        ensure(places["nobody"] is Place.GONE, "nobody was found", places)
        for task_id in ids:
            if places[task_id] in (Place.LEASED, Place.IN_FLIGHT):
                call = world.call_of(world.state.items[task_id].envelope)
                if call.revoked is None:
                    call.revoked = self._workers.fence
                call.moved = True
            else:
                stored = task_id in world.state.items
                ensure(stored == (places[task_id] is Place.DEAD), "not found", task_id, places)

    def repair(self) -> None:
        """An operator looks for requests that no index knows: there are none."""
        ensure(self._inspector().repair() == 0, "something had to be repaired")
        self._inspector().check_ledger()

    def _inspector(self) -> Inspector:
        world = self._world
        trigger, routes = world.trigger(), [group.route for group in GROUPS]
        return Inspector(
            world.store, trigger, lambda _: routes, lambda bells: world.ring("", bells)
        )
