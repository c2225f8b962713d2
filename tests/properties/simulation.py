"""A deterministic simulation of callers, a broker, workers and sweepers around the real scripts.

One process plays everybody. A seed decides who acts next and what goes wrong: doorbells and replies
get lost, doubled or late; workers die or sleep past their lease; the clock jumps; Redis fails over
to a replica that missed the end. After every step the guarantees are checked, and at the end, with
no more faults, everything that was accepted must end within its bounds.

    python -m tests.properties.simulation --seeds 20000 --url redis://localhost:6379/0

A seed that fails once belongs into FAILED_SEEDS, which every run of the tests repeats.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fakeredis
import redis

from redis_batches.config import DEDUPLICATION_WINDOW_MS, Settings
from redis_batches.errors import LeaseLost
from redis_batches.model import (
    Bells,
    Claimed,
    Group,
    Idle,
    Outcome,
    Outgoing,
    Status,
    Trigger,
    Verb,
)
from redis_batches.scripts import load_scripts
from redis_batches.store import Lease, Store
from redis_batches.sweeper import Served, Sweeper
from tests.properties.state import FRESH, State, ensure

FAILED_SEEDS: tuple[int, ...] = ()

STEPS = 80
SECOND, HOUR = 1000, 3_600_000
LEASE = 30
MAX_PAUSE_MS = 600_000
#: A request that killed its worker so often, alone in its batch, is not run again.
MAX_CRASHES_ALONE = 3
GROUPS = (Group.of({"queue": "clicks"}), Group.of({"queue": "views"}))


@dataclass
class Call:
    """A request as its caller sees it.

    Attributes:
        serial: Stands in the envelope, so that a worker knows which call it runs.
        told: Final outcomes that its caller was told; in the end exactly one.
        runs: How often a worker has run it.
        allowed: How often it may run when a lost run must not be repeated.
        crashes: How often a worker died while it ran it.
        buried: It is, or was, a dead letter.
        forgiven: A failover lost it, or brought it back: what was told does not count.
    """

    serial: int
    id: str
    nonce: str
    group: Group
    eta_ms: int | None = None
    poison: bool = False
    told: list[str] = field(default_factory=list)
    ended_step: int | None = None
    runs: int = 0
    allowed: int = 1
    crashes: int = 0
    buried: bool = False
    forgiven: bool = False

    def outgoing(self, padding: int = 0) -> Outgoing:
        """Returns what is pushed."""
        envelope = b"%d|%s" % (self.serial, b"x" * padding)
        return Outgoing(self.id, self.nonce, self.eta_ms, envelope)


@dataclass(frozen=True)
class Doorbell:
    """A message in the broker."""

    id: str
    group: str
    rung_ms: int
    force: bool = False


@dataclass
class Run:
    """A batch in the hands of a worker, which may die or sleep between any two lines."""

    lease: Lease
    todo: list[tuple[Claimed, Call]]
    hopeless: list[tuple[Claimed, Call]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    given_back: list[Outcome] = field(default_factory=list)
    started: bool = False
    asleep_until: int = 0


@dataclass(frozen=True)
class Weather:
    """What this seed is like: how often what goes wrong. Many seeds are calm in most respects."""

    lost_reply: float
    late_resend: float
    lost_bell: float
    doubled_bell: float
    death: float
    nap: float
    once: bool
    limit: float | None
    clock_jumps: bool
    failovers: bool
    max_pending: int
    triggers: tuple[Trigger, ...]

    @classmethod
    def draw(cls, rng: random.Random) -> Weather:
        """Returns the weather of a seed."""

        def often(*choices: float) -> float:
            return rng.choice((0.0, *choices))

        sizes = [rng.choice((1, 2, 3, 5, 8, 16)) for _ in range(rng.choice((1, 1, 2)))]
        interval_ms = rng.choice((0, 50, SECOND, 10 * SECOND, 10 * SECOND, HOUR))
        failovers = rng.random() < 0.15
        return cls(
            lost_reply=often(0.05, 0.3),
            late_resend=often(0.05, 0.2),
            lost_bell=often(0.1, 0.5, 1.0),
            doubled_bell=often(0.1, 0.3),
            death=often(0.02, 0.1, 0.3),
            nap=often(0.02, 0.1),
            once=rng.random() < 0.15,
            limit=rng.choice((None, None, 60.0)),
            clock_jumps=not failovers and rng.random() < 0.3,
            failovers=failovers,
            max_pending=rng.choice((8, 1000, 1000)),
            triggers=tuple(Trigger(size, interval_ms) for size in sizes),
        )


class LossyStore(Store):
    """A store whose replies may get lost: the call is sent again, at once and maybe later, too."""

    def __init__(self, client: redis.Redis, settings: Settings, world: Simulation) -> None:
        super().__init__(client, settings, "shop.click", lambda: str(world.now_ms))
        self._world = world
        self.late: list[Callable[[], Any]] = []

    def run(self, script: str, **values: Any) -> list[Any]:
        """Runs a script once, twice, or once now and once at another time."""
        world = self._world
        again = partial(super().run, script, **values)
        if world.happens(world.weather.lost_reply):
            again()
        # A late push is `Simulation.push_again`, which knows what must become of it.
        if script != "push" and world.happens(world.weather.late_resend):
            self.late.append(again)
        reply = again()
        if script == "sweep" and reply[0] == "swept":
            world.swept()
        return reply


class Simulation:
    """One seed.

    Args:
        client: A connection to a server.
        seed: Decides everything.
    """

    def __init__(self, client: redis.Redis, seed: int) -> None:
        self.rng = random.Random(seed)
        self.weather = Weather.draw(self.rng)
        self.client = client
        self.now_ms = 1_800_000_000_000
        self.faults = True
        self.settings = Settings(
            namespace=f"sim-{seed}",
            lease=LEASE,
            max_pending=self.weather.max_pending,
            max_dead=self.rng.choice((0, 2, 1000)),
            flush_bytes=self.rng.choice((300, 100_000)),
        )
        self.store = LossyStore(client, self.settings, self)
        self.sweepers = [self._sweeper(name) for name in ("anne", "bert", "")]
        self.broker: list[Doorbell] = []
        self.broker_is_up = True
        self.runs: list[Run] = []
        self.calls: list[Call] = []
        self.serial = 0
        self.step = 0
        self.times: list[int] = []
        self.clock_is_sound = True
        self.fence = 0
        self.replica: tuple[int, dict[bytes, bytes]] = (0, {})
        self.before = self.after = self.read()
        for script in load_scripts().values():
            client.script_load(script.source)

    # -- Chance

    def happens(self, probability: float) -> bool:
        """Whether a fault happens now."""
        return self.faults and self.rng.random() < probability

    def play(self) -> None:
        """Plays the whole seed, and leaves nothing behind."""
        try:
            for self.step in range(STEPS):
                with self.checked():
                    self.act()
            self.drain()
        except BaseException as exc:
            exc.add_note(f"at step {self.step}, {self.weather}")
            raise
        finally:
            if found := self.client.keys(f"rb:{{{self.settings.namespace}/*"):
                self.client.delete(*found)

    def act(self) -> None:
        """Somebody does something."""
        actions: dict[Callable[[], None], float] = {
            self.push: 4,
            self.answer: 6,
            self.work: 12,
            self.sweep: 3,
            self.wait: 4,
            self.push_again: 1,
            self.resend: 1,
            self.flush: 0.3,
            self.restart_sweeper: 0.3,
            self.toggle_broker: 0.3,
            self.redeploy: 0.3,
            self.jump: 1 if self.weather.clock_jumps else 0,
            self.replicate: 1 if self.weather.failovers else 0,
            self.fail_over: 0.5 if self.weather.failovers else 0,
        }
        (action,) = self.rng.choices(list(actions), list(actions.values()))
        action()

    # -- Guarantees

    def read(self) -> State:
        """Returns what Redis holds."""
        return State.read(self.client, self.store.keys, [group.id for group in GROUPS])

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Checks every guarantee after a step."""
        self.times.append(self.now_ms)
        self.before = self.after
        yield
        self.after = self.read()
        self.after.check()
        self._check_calls()
        self._check_wake_up()

    def _check_calls(self) -> None:
        """Nothing leaves Redis before its caller was told, and nobody is told twice."""
        stored = {self._call_of(item.envelope).serial for item in self.after.items.values()}
        for call in self.calls:
            ensure(call.forgiven or len(call.told) <= 1, f"{call} was told twice")
            if call.serial not in stored:
                ensure(call.told or call.forgiven, f"{call} is lost")
                call.ended_step = self.step if call.ended_step is None else call.ended_step

    def _check_wake_up(self) -> None:
        """What can be claimed was rung for, or the next sweep rings, or does after the pause."""
        largest = max(trigger.flush_every for trigger in self.weather.triggers)
        longest = max(trigger.interval_ms for trigger in self.weather.triggers)
        for group, entries in self.after.pending.items():
            if not entries or not self.clock_is_sound:
                continue
            out, _, pause_ms = self.after.bell(group)
            wait_ms = self.after.groups[group] - self.now_ms
            ensure(wait_ms <= max(longest, pause_ms), f"{group} waits for too long: {wait_ms} ms")
            head = entries[0]
            due = head.split != FRESH or head.since_ms + longest <= self.now_ms
            if due or len(entries) >= largest:
                ensure(out or wait_ms <= 0, f"{group} has a batch, and nobody is woken")

    def unchanged(self) -> None:
        """What a worker without a lease does changes nothing."""
        ensure(self.read() == self.after, "a worker that lost its lease changed something")

    # -- Callers

    def push(self) -> None:
        """Somebody calls the task, once or several times in one go."""
        group = self.rng.choice(GROUPS)
        calls = [self._new_call(group) for _ in range(self.rng.choice((1, 1, 1, 2, 3, 8, 20)))]
        outgoing = [call.outgoing(self.rng.choice((0, 20, 120, 400))) for call in calls]
        pushed = self.store.push(group, self._trigger(), outgoing)
        for call, status in zip(calls, pushed.statuses, strict=True):
            self._check_status(call, status)
            if status in (Status.NEW, Status.AGAIN):
                self.calls.append(call)
        if not self.happens(self.weather.death):
            self.ring("", pushed.bells)

    def _new_call(self, group: Group) -> Call:
        self.serial += 1
        serial = self.serial
        task_id, nonce = f"id-{serial}", ""
        if self.calls and self.rng.random() < 0.05:
            task_id, nonce = self.rng.choice(self.calls).id, f"nonce-{serial}"
        call = Call(serial, task_id, nonce, group, poison=self.happens(0.01))
        if self.rng.random() < 0.1:
            call.eta_ms = self.now_ms + self.rng.choice((-SECOND, SECOND, 20 * SECOND))
        return call

    def _check_status(self, call: Call, status: Status) -> None:
        """An id that waits or runs is a duplicate; any other is new, while there is room."""
        waits = call.id in self.before.items and not self.before.is_dead(call.id)
        sent_twice = self.weather.lost_reply > 0
        if status is Status.DUPLICATE:
            ensure(call.nonce, f"{call} is the first with this id, but a duplicate")
        elif status is Status.FULL:
            ensure(self.read().waiting >= self.settings.max_pending, "full before the limit")
        else:
            ensure(not waits, f"{call} was accepted, but another one waits")
            ensure(status is Status.NEW or (status is Status.AGAIN and sent_twice), f"{status}")

    def push_again(self) -> None:
        """A call that was accepted arrives once more: it changes nothing within the window."""
        known = [call for call in self.calls if not call.forgiven]
        if not known:
            return
        call = self.rng.choice(known)
        if call.ended_step is not None:
            latest = max(self.times[call.ended_step :])
            if latest >= self.times[call.ended_step] + DEDUPLICATION_WINDOW_MS:
                return
            if call.buried:
                return
        status = self.store.push(call.group, self._trigger(), [call.outgoing()]).statuses[0]
        ensure(status in (Status.AGAIN, Status.DONE), f"{call} arrived again: {status}")

    def flush(self) -> None:
        """Somebody wants what waits to run now."""
        group = self.rng.choice(GROUPS)
        self.ring("", Bells(group.id, group.route, 1, 0), force=True)

    # -- The broker

    def ring(self, task: str, bells: Bells, *, force: bool = False) -> None:
        """Sends doorbells, some of which get lost."""
        ensure(bells.count == 0 or bells.route, f"nobody knows where to ring: {bells}")
        for _ in range(bells.count):
            if not self.broker_is_up or self.happens(self.weather.lost_bell):
                continue
            bell = Doorbell(f"bell-{self.rng.getrandbits(64):x}", bells.group, bells.rung_ms, force)
            self.broker.append(bell)

    def toggle_broker(self) -> None:
        """The broker goes down, or comes up again."""
        self.broker_is_up = not self.broker_is_up

    # -- Workers

    def answer(self) -> None:
        """A worker gets a doorbell, not always the oldest, and claims a batch."""
        if not self.broker:
            return
        index = self.rng.randrange(min(len(self.broker), 5))
        bell = self.broker[index]
        if not self.happens(self.weather.doubled_bell):
            del self.broker[index]
        trigger, token = self._trigger(), f"token-{self.rng.getrandbits(64):x}"
        lease = self.store.claim(
            bell.group,
            trigger,
            token=token,
            bell=bell.id,
            rung_ms=bell.rung_ms,
            limit=self.weather.limit,
            once=self.weather.once,
            force=bell.force,
        )
        if isinstance(lease, Idle):
            return
        self._check_batch(lease, trigger, force=bell.force)
        if not self.happens(self.weather.death):
            self.ring("", lease.bells)
            self._open(lease)

    def _check_batch(self, lease: Lease, trigger: Trigger, *, force: bool) -> None:
        """A batch is the head of the list, within the limits, and due."""
        size = len(lease.requests)
        ids = [request.id for request in lease.requests]
        head = self.before.pending[lease.group][:size]
        ensure(ids == [entry.id for entry in head], f"{ids} are not the oldest")
        ensure(1 <= size <= trigger.flush_every, f"a batch of {size} of {trigger}")
        weight = sum(len(request.envelope) for request in lease.requests)
        ensure(weight <= self.settings.flush_bytes or size == 1, f"a batch of {weight} bytes")
        cut = self._would_overflow(lease)
        due = force or head[0].is_due(trigger.interval_ms, self.now_ms)
        ensure(size == trigger.flush_every or due or cut, f"{ids} were not due")
        ensure(lease.fence > self.fence, f"fence {lease.fence} after {self.fence}")
        self.fence = lease.fence

    def _would_overflow(self, lease: Lease) -> bool:
        rest = self.before.pending[lease.group][len(lease.requests) :]
        if not rest:
            return False
        weight = sum(self._weight(request.id) for request in lease.requests)
        return weight + self._weight(rest[0].id) > self.settings.flush_bytes

    def _weight(self, task_id: str) -> int:
        item = self.before.items[task_id]
        return len(item.envelope) + len(item.group) + len(item.nonce) + 2

    def _open(self, lease: Lease) -> None:
        run = Run(lease, [])
        for request in lease.requests:
            call = self._call_of(request.envelope)
            if request.attempts.number > 1 and call.told and not call.forgiven:
                continue
            if request.attempts.lost or request.attempts.alone >= MAX_CRASHES_ALONE:
                run.hopeless.append((request, call))
            else:
                run.todo.append((request, call))
        self.runs.append(run)

    def work(self) -> None:
        """A worker goes on with its batch: a bit, or dies, or falls asleep."""
        awake = [run for run in self.runs if run.asleep_until <= self.now_ms]
        if not awake:
            return
        run = self.rng.choice(awake)
        if self.happens(self.weather.death):
            self._die(run)
        elif self.happens(self.weather.nap):
            run.asleep_until = self.now_ms + self.rng.choice((SECOND, LEASE * SECOND, 100 * SECOND))
        else:
            self._go_on(run)

    def _die(self, run: Run) -> None:
        self.runs.remove(run)
        if run.started:
            for _, call in run.todo:
                call.crashes += 1
        if self.rng.random() < 0.3:
            lease = run.lease
            self.ring(
                "", self.store.reclaim(lease.token, lease.group, self._trigger(), seen_dead=True)
            )

    def _go_on(self, run: Run) -> None:
        """Does the next thing that is to be done with a batch."""
        try:
            if not run.started:
                self._start(run)
            elif run.hopeless or run.todo:
                self._decide(run)
            elif run.given_back:
                for bells in run.lease.release(run.given_back):
                    if not self.happens(self.weather.death):
                        self.ring("", bells)
                run.given_back = []
            else:
                run.lease.ack(well=self.rng.random() < 0.5)
                self.runs.remove(run)
        except LeaseLost:
            self.unchanged()
            self.runs.remove(run)

    def _start(self, run: Run) -> None:
        run.started = True
        for _, call in run.todo:
            call.runs += 1
            ensure(
                not self.weather.once or call.runs <= call.allowed or call.forgiven,
                f"{call} ran twice, though its task runs at most once",
            )
        if any(call.poison for _, call in run.todo):
            self._die(run)

    def _decide(self, run: Run) -> None:
        """The function settles a few of its requests."""
        if not run.lease.extend():
            self.runs.remove(run)
            return
        for request, call in run.hopeless:
            call.told.append("failure")
            call.buried = True
            run.given_back.append(Outcome(request.id, Verb.DEAD, error="WorkerLostError()"))
        run.hopeless = []
        for _ in range(self.rng.choice((1, 2, 5, 100))):
            if run.todo:
                self._settle(run, *run.todo.pop())
        if run.finished and self.rng.random() < 0.2:
            run.finished = run.finished[run.lease.ack(run.finished) and len(run.finished) :]

    def _settle(self, run: Run, request: Claimed, call: Call) -> None:
        verbs = ("succeed", "retry", "retry_batch", "put_back", "dead", "call_again")
        weights = (16, 2, 2, 2, 1, 2) if self.faults else (1, 0, 0, 0, 0, 0)
        (verb,) = self.rng.choices(verbs, weights)
        if verb == "succeed":
            call.told.append("success")
            run.finished.append(request.id)
            return
        if verb == "call_again":
            self._call_again(run, call)
            return
        if verb == "dead":
            call.told.append("failure")
            call.buried = True
        else:
            call.allowed += 1
        delay_ms = self.rng.choice((0, 0, SECOND, 60 * SECOND)) if verb != "dead" else 0
        run.given_back.append(Outcome(request.id, Verb(verb), delay_ms, "RuntimeError()"))

    def _call_again(self, run: Run, call: Call) -> None:
        """The function calls the task with the id of one of its requests: that is its retry."""
        call.allowed += 1
        call.nonce, call.group = f"again-{self.rng.getrandbits(64):x}", self.rng.choice(GROUPS)
        call.eta_ms = self.rng.choice((None, None, self.now_ms + 5 * SECOND))
        pushed = self.store.push(
            call.group, self._trigger(), [call.outgoing()], caller=run.lease.token
        )
        ensure(pushed.statuses[0] in (Status.NEW, Status.AGAIN), f"{call}: {pushed.statuses}")
        if not self.happens(self.weather.death):
            self.ring("", pushed.bells)

    # -- Sweepers

    def _sweeper(self, name: str) -> Sweeper:
        served = [Served(self.store, self.rng.choice(self.weather.triggers))]
        return Sweeper(lambda: served, self.ring, 1.0, name)

    def sweep(self) -> None:
        """A sweeper ticks."""
        self.rng.choice(self.sweepers).tick()

    def restart_sweeper(self) -> None:
        """A worker starts, and its sweeper greets."""
        index = self.rng.randrange(2)
        self.sweepers[index] = self._sweeper(self.rng.choice(("anne", "bert", "carl")))

    def swept(self) -> None:
        """Notes that a sweep corrected what the clock had spoilt."""
        self.clock_is_sound = True

    # -- Time, deploys, lost packets, failovers

    def wait(self) -> None:
        """Time goes by."""
        self.now_ms += self.rng.choice((1, 20, 300, SECOND, 5 * SECOND, LEASE * SECOND + 1))

    def jump(self) -> None:
        """The server's clock is set."""
        jump_ms = self.rng.choice((-5 * HOUR, -HOUR, -40 * SECOND, -SECOND, HOUR, 5 * HOUR))
        self.now_ms += jump_ms
        self.clock_is_sound = False

    def redeploy(self) -> None:
        """Some workers get another flush_every, while others keep theirs."""
        self.sweepers[2] = self._sweeper("")

    def resend(self) -> None:
        """A call to Redis that was taken for lost arrives after all."""
        if self.store.late:
            self.store.late.pop(self.rng.randrange(len(self.store.late)))()

    def replicate(self) -> None:
        """A replica gets everything that was written so far."""
        keys = self.client.keys(f"rb:{{{self.settings.namespace}/*")
        self.replica = (self.step, {key: self.client.dump(key) for key in sorted(keys)})

    def fail_over(self) -> None:
        """The replica takes over: what it has not got is gone, what it still has comes back."""
        _, dumps = self.replica
        if keys := self.client.keys(f"rb:{{{self.settings.namespace}/*"):
            self.client.delete(*keys)
        for key, dump in dumps.items():
            self.client.restore(key, 0, dump)
        self.now_ms += SECOND
        for call in self.calls:
            call.forgiven = True

    # -- The end

    def drain(self) -> None:
        """Without further faults every accepted request ends within its bounds."""
        self.faults, self.broker_is_up = False, True
        self.store.late.clear()
        start_ms, deadline_ms = self.now_ms, self._deadline()
        while self.after.waiting or self.after.leases:
            while self.broker:
                with self.checked():
                    self.answer()
            self._finish_runs()
            with self.checked():
                wait = self.sweepers[0].tick()
            if self.after.leases or (self.after.waiting and not self.broker and not self.runs):
                waited = f"{(self.now_ms - start_ms) / SECOND} s"
                ensure(self.now_ms <= deadline_ms, f"not drained after {waited}")
                self._wait_for_attention(wait)
        self._finish_runs()
        self._check_end()

    def _finish_runs(self) -> None:
        while self.runs:
            with self.checked():
                self._go_on(self.runs[0])

    def _deadline(self) -> int:
        """When all must be over: after the lease, the pause of a doorbell, delays and crashes."""
        longest = max(trigger.interval_ms for trigger in self.weather.triggers)
        state = self.after
        latest = max((self.now_ms, *state.eta.values(), *state.delayed.values()))
        poison = sum(call.poison for call in self.calls)
        crashes = poison * (math.log2(16) + 3) * (LEASE * SECOND + MAX_PAUSE_MS)
        return latest + longest + LEASE * SECOND + MAX_PAUSE_MS + 10 * SECOND + round(crashes)

    def _wait_for_attention(self, seconds: float) -> None:
        """Skips the ticks that would find nothing."""
        state = self.after
        times = (state.groups, state.leases, state.delayed, state.eta)
        first_ms = min(ms for scores in times for ms in scores.values())
        self.now_ms = max(self.now_ms + math.ceil(seconds * SECOND), first_ms + 1)

    def _check_end(self) -> None:
        """Everybody was told once; no innocent request died; nothing is left but dead letters."""
        for call in self.calls:
            ensure(call.forgiven or len(call.told) == 1, f"{call} was told {call.told}")
            if call.poison:
                most = math.log2(16) + MAX_CRASHES_ALONE
                ensure(call.forgiven or call.crashes <= most, f"{call} killed too many workers")
        state = self.after
        for left in (state.pending["" or GROUPS[0].id], state.pending[GROUPS[1].id]):
            ensure(not left, f"{left} wait")
        for name in ("claims", "own", "leases", "groups", "bells", "delayed", "eta", "batches"):
            ensure(not getattr(state, name), f"{name} is left")
        found = self.client.keys(f"{self.store.keys.batch('')}*")
        ensure(not found, f"{found} are left")

    # -- Odds and ends

    def _trigger(self) -> Trigger:
        return self.rng.choice(self.weather.triggers)

    def _call_of(self, envelope: bytes) -> Call:
        serial = int(envelope.partition(b"|")[0])
        return next(call for call in self.calls if call.serial == serial)


def play(client: redis.Redis, seed: int) -> None:
    """Plays one seed."""
    try:
        Simulation(client, seed).play()
    except AssertionError as exc:
        exc.add_note(f"seed {seed}: add it to FAILED_SEEDS")
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Plays many seeds; prints those that fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default: %(default)s)")
    parser.add_argument("--url", help="a Redis or Valkey server; default: fakeredis")
    options = parser.parse_args(argv)
    logging.getLogger("redis_batches").setLevel(logging.ERROR)
    client = redis.Redis.from_url(options.url) if options.url else fakeredis.FakeRedis()
    failed, started = [], time.monotonic()
    for seed in range(options.first, options.first + options.seeds):
        try:
            play(client, seed)
        except AssertionError as exc:
            failed.append(seed)
            print(f"seed {seed}: {exc}", *exc.__notes__, sep="\n  ", flush=True)
    seconds = time.monotonic() - started
    print(f"{options.seeds} seeds in {seconds:.1f} s, {len(failed)} failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
