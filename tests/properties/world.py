"""What the actors of the simulation share: chance, time, Redis, a broker and a list of calls."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import redis

from redis_batches.buffer.store import Store
from redis_batches.core.requests import Group, Outgoing
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.driver.scripts import load_scripts
from tests.support import raw
from tests.support.state import Seen, State, ensure

SECOND, HOUR = 1000, 3_600_000
#: Calls of these scripts may arrive once more at any later time. What a late push must do depends
#: on what its caller was told: see `Callers.push_again`.
MAY_BE_LATE = {"claim", "extend", "ack", "release", "sweep", "reclaim", "promote", "cancel"}
LEASE = 30
#: Two groups, so that a request can move from one to the other.
GROUPS = (Group.of({"queue": "clicks"}), Group.of({"queue": "views"}))


class Died(Exception):
    """A process died between two steps of what it did."""


@dataclass
class Call:
    """One call of the task, as its caller sees it.

    Attributes:
        serial: Stands in its envelope, so that a worker knows which call it runs.
        id: The task id; another call may have it, too.
        nonce: Tells this call from another with its id.
        group: Where it waits.
        eta_ms: When it may run.
        poison: Whether it kills its worker.
        told: The outcomes that its caller was told: exactly one in the end.
        again: How often it was run again on purpose, and its caller told again: an operator
            requeued it, or a failover brought it back.
        lost: A failover lost it; it is the only fault that may.
        forgotten: Redis may not remember that it ended: it was a dead letter, or a failover came.
        moved: It has left its place in the order of calls: it was delayed or retried.
        runs: How often a worker began to run it.
        allowed: How often it may run where a lost run must not be repeated.
        crashes: How many workers it killed.
        revoked: The newest fence when its revoke was accepted: no later run may have it.
        ended_step: The step after which it was not stored any more.
        sent_ms: When it was first sent, by a clock that nobody sets.
    """

    serial: int
    id: str
    nonce: str
    group: Group
    eta_ms: int | None = None
    poison: bool = False
    told: list[str] = field(default_factory=list)
    again: int = 0
    lost: bool = False
    forgotten: bool = False
    moved: bool = False
    runs: int = 0
    allowed: int = 1
    crashes: int = 0
    revoked: int | None = None
    ended_step: int | None = None
    sent_ms: int = 0

    def outgoing(self, padding: int = 0) -> Outgoing:
        """Returns what is pushed."""
        envelope = b"%d|%s" % (self.serial, b"x" * padding)
        # Some are compressed: a worker holds more of them than is stored.
        size = len(envelope) + 150 if padding == 120 else None
        return Outgoing(self.id, self.nonce, self.eta_ms, envelope, size)


@dataclass(frozen=True)
class Doorbell:
    """A message in the broker."""

    id: str
    group: str
    rung_ms: int
    force: bool


@dataclass(frozen=True)
class Weather:
    """What a seed is like: how often what goes wrong. Most seeds are calm in most respects.

    Attributes:
        lost_reply: A reply of Redis gets lost, and its client sends the call again at once.
        late_call: A call to Redis arrives once more, at any later time.
        lost_bell: A doorbell gets lost.
        doubled_bell: A doorbell is delivered, and stays in the broker.
        death: A process dies after whatever it did last.
        slip: A worker decides a request, and does not note it.
        nap: A worker sleeps for a while, perhaps past its lease.
        once: Whether a lost run must not be repeated (`acks_late=False`).
        limit: The time limit of a run, in seconds.
        clock_jumps: Whether the server's clock is set, forth and back.
        failovers: Whether a replica takes over that has not got everything.
        triggers: What the workers of one or two deploys go by.
    """

    lost_reply: float
    late_call: float
    lost_bell: float
    doubled_bell: float
    death: float
    slip: float
    nap: float
    once: bool
    limit: float | None
    clock_jumps: bool
    failovers: bool
    triggers: tuple[Trigger, ...]

    @classmethod
    def draw(cls, rng: random.Random) -> Weather:
        """Returns the weather of a seed."""
        sizes = [rng.choice((1, 2, 3, 5, 8, 16)) for _ in range(rng.choice((1, 1, 2)))]
        interval_ms = rng.choice((0, 50, SECOND, 10 * SECOND, 10 * SECOND, HOUR))
        failovers = rng.random() < 0.15
        return cls(
            lost_reply=rng.choice((0.0, 0.05, 0.3)),
            late_call=rng.choice((0.0, 0.05, 0.2)),
            lost_bell=rng.choice((0.0, 0.1, 0.5, 1.0)),
            doubled_bell=rng.choice((0.0, 0.1, 0.3)),
            death=rng.choice((0.0, 0.02, 0.1, 0.3)),
            slip=rng.choice((0.0, 0.0, 0.05, 0.2)),
            nap=rng.choice((0.0, 0.02, 0.1)),
            once=rng.random() < 0.15,
            limit=rng.choice((None, None, 60.0)),
            clock_jumps=not failovers and rng.random() < 0.3,
            failovers=failovers,
            triggers=tuple(Trigger(size, interval_ms) for size in sizes),
        )

    @property
    def largest(self) -> int:
        """The largest batch of any worker."""
        return max(trigger.flush_every for trigger in self.triggers)

    @property
    def longest_ms(self) -> int:
        """The longest interval of any worker."""
        return max(trigger.interval_ms for trigger in self.triggers)


class World:
    """Everything outside the actors.

    Args:
        client: A connection to a server.
        seed: Decides everything.
    """

    def __init__(self, client: redis.Redis, seed: int) -> None:
        self.rng = random.Random(seed)
        self.weather = Weather.draw(self.rng)
        self.faults = True
        self.client = client
        #: Decides what was added later, so that a seed is the game that it was.
        self.later = random.Random(-1 - seed)
        self.now_ms = 1_800_000_000_000
        #: By how much somebody has set the clock.
        self.set_ms = 0
        #: Whether a sweep has corrected what the last setting of the clock spoilt.
        self.clock_is_sound = True
        self.store = LossyStore(self)
        self.broker: list[Doorbell] = []
        self.broker_is_up = True
        self.calls: dict[int, Call] = {}
        self.serials = count()
        #: The step, the time at each, and what Redis held after the last one.
        self.step = 0
        self.times: list[int] = []
        #: How often each kind of fault was played.
        self.played: Counter[str] = Counter()
        #: Whether anything may have been written since `state` was read.
        self.touched = False
        self._seen = Seen()
        self.state = self.read()

    @property
    def elapsed_ms(self) -> int:
        """The time by a clock that nobody sets."""
        return self.now_ms - self.set_ms

    def draw(self, probability: float) -> bool:
        """Decides something that only happens while there are faults."""
        return self.faults and self.rng.random() < probability

    def happens(self, fault: str) -> bool:
        """Decides whether a fault happens now, as often as the weather has it."""
        happened = self.draw(getattr(self.weather, fault))
        if happened:
            self.played[fault] += 1
        return happened

    def dies(self) -> bool:
        """Decides whether the acting process dies now."""
        return self.happens("death")

    def name(self, kind: str) -> str:
        """Returns a name that is new."""
        return f"{kind}-{self.rng.getrandbits(64):x}"

    def trigger(self) -> Trigger:
        """Returns what some process goes by: deploys overlap."""
        return self.rng.choice(self.weather.triggers)

    def read(self) -> State:
        """Returns what Redis holds now."""
        groups = [group.id for group in GROUPS]
        return State.read(self.client, raw.keys(self.store), groups, self._seen)

    @staticmethod
    def serial_of(envelope: bytes) -> int:
        """Returns the number of the call that an envelope holds."""
        return int(envelope.partition(b"|")[0])

    def call_of(self, envelope: bytes) -> Call:
        """Returns the call that an envelope holds."""
        return self.calls[self.serial_of(envelope)]

    def ring(self, task: str, bells: Bells, *, force: bool = False) -> None:
        """Sends doorbells, some of which get lost."""
        ensure(bells.count == 0 or bells.route, "nobody knows where to ring", bells)
        for _ in range(bells.count):
            if not self.broker_is_up:
                self.played["lost_bell"] += 1
            elif not self.happens("lost_bell"):
                bell = Doorbell(self.name("bell"), bells.group, bells.rung_ms, force)
                self.broker.append(bell)

    def ring_if_alive(self, bells: Bells) -> None:
        """Sends the doorbells that a script booked, unless its caller dies before."""
        if not self.dies():
            self.ring("", bells)


class LossyStore(Store):
    """A store whose replies get lost, and whose calls arrive once more when nobody waits for them.

    Attributes:
        late: Calls that are still on their way.
        disturbed: Whether another call came between two steps of the last claim.
    """

    def __init__(self, world: World) -> None:
        rng = world.rng
        settings = Settings(
            namespace=world.name("simulation"),
            lease=LEASE,
            max_pending=rng.choice((8, 1000, 1000)),
            max_dead=rng.choice((0, 2, 1000)),
            flush_bytes=rng.choice((300, 100_000)),
        )
        super().__init__(world.client, settings, "shop.click", lambda: str(world.now_ms))
        self._world = world
        self.late: list[Callable[[], Any]] = []
        self.disturbed = False
        steps, sizes = (1, 2, 3, 1000, 1000), (200, 1_000_000)
        step, bound = world.later.choice(steps), world.later.choice(sizes)
        window = world.later.choice((17, 17, 100_000))
        self._forced = {
            "claim": {"step": step, "step_bytes": bound},
            "reclaim": {"step": step},
            "ack": {"window": window},
        }
        redis: Any = self._redis
        for way in ("run", "run_alike"):
            setattr(redis, way, partial(self._run, getattr(redis, way)))
        # Else a seed would be another game on a server that has not seen them.
        for script in load_scripts().values():
            world.client.script_load(script.source)

    def cancel(self, group: str, ids: Sequence[str], trigger: Trigger, *, token: str = "") -> Any:
        """Cancels under a name that the seed decides: leases that end together go by names."""
        token = token or self._world.name("canceller")
        return super().cancel(group, ids, trigger, token=token)

    def _run(self, run: Callable[..., Any], script: str, *args: Any, **values: Any) -> Any:
        """Runs a script once, twice, or once now and once later."""
        world = self._world
        world.touched = True
        values.update(self._forced.get(script, {}))
        if script == "claim" and not values["got"]:
            self.disturbed = False
        send = partial(run, script, *args, **values)
        if world.happens("lost_reply"):
            send()
        if script in MAY_BE_LATE and world.draw(world.weather.late_call):
            self.late.append(send)
        reply = send()
        if script == "sweep" and reply[0] == "swept":
            world.clock_is_sound = True
        if reply[0] in ("part", "more"):
            self._between_steps()
        return reply

    def _between_steps(self) -> None:
        """Whoever takes several steps dies, or something else arrives first."""
        world = self._world
        world.played["step"] += 1
        if world.faults and world.later.random() < world.weather.death:
            world.played["death"] += 1
            raise Died
        if world.faults and self.late and world.later.random() < 0.5:
            self.disturbed = True
            world.played["late_call"] += 1
            self.late.pop(world.later.randrange(len(self.late)))()
