"""A deterministic simulation of callers, a broker, workers and sweepers around the real scripts.

One process plays everybody. A seed decides who acts next and what goes wrong: doorbells and replies
get lost, doubled or late; workers die, or sleep past their lease; the clock is set; a replica takes
over that has not got everything. After every step the guarantees are checked, and at the end, with
no more faults, everything that was accepted must end within its bounds.

    python -m tests.properties.simulation --seeds 20000 --url redis://localhost:6379/0

A seed that fails once belongs into FAILED_SEEDS, which every run of the tests repeats.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import fakeredis
import redis

from redis_batches.upkeep.sweeper import Served, Sweeper
from tests.properties.callers import Callers
from tests.properties.workers import MAX_CRASHES_ALONE, Workers
from tests.properties.world import HOUR, LEASE, SECOND, Died, World
from tests.support import raw
from tests.support.state import FRESH, ensure

FAILED_SEEDS = (
    8,
    35,
    97,
    142,
    351,
    352,
    5243,
    10544,
    10685,
    10923,
    11983,
    12142,
    12157,
    22823,
    100782,
)

STEPS = 80
MAX_PAUSE_MS = 600_000


class Simulation:
    """One seed.

    Args:
        client: A connection to a server.
        seed: Decides everything.
    """

    def __init__(self, client: redis.Redis, seed: int) -> None:
        self.world = World(client, seed)
        self.workers = Workers(self.world)
        self.callers = Callers(self.world, self.workers)
        self._sweepers = [self._sweeper(name) for name in ("anne", "bert", "")]
        self._replica: dict[bytes, bytes] = {}

    def play(self) -> None:
        """Plays the whole seed, and leaves nothing behind."""
        try:
            for self.world.step in range(STEPS):
                with self._checked():
                    self._act()
            self._drain()
            self._check_end()
        except AssertionError as exc:
            raise AssertionError(f"{exc}; at step {self.world.step}, {self.world.weather}") from exc
        finally:
            if found := self._keys():
                self.world.client.delete(*found)

    def _act(self) -> None:
        """Somebody does something."""
        weather = self.world.weather
        actions: dict[Callable[[], object], float] = {
            self.callers.push: 4,
            self.callers.push_again: 1,
            self.callers.flush: 0.3,
            self.callers.operate: 0.5,
            self.callers.repair: 0.2,
            self.callers.revoke: 1,
            self.workers.answer: 6,
            self.workers.work: 12,
            self._sweep: 3,
            self._restart_a_sweeper: 0.3,
            self._wait: 4,
            self._stop_or_start_the_broker: 0.3,
            self._deliver_late: 1,
            self._set_the_clock: 1 if weather.clock_jumps else 0,
            self._replicate: 1 if weather.failovers else 0,
            self._fail_over: 0.5 if weather.failovers else 0,
        }
        (action,) = self.world.rng.choices(list(actions), list(actions.values()))
        with suppress(Died):
            action()

    # -- Sweepers, time and disasters

    def _sweeper(self, name: str) -> Sweeper:
        served = [Served(self.world.store, self.world.trigger())]
        return Sweeper(lambda: served, self.world.ring, 1.0, name)

    def _sweep(self) -> None:
        """A sweeper ticks: one of two workers', or beat's."""
        self.world.rng.choice(self._sweepers).tick()

    def _restart_a_sweeper(self) -> None:
        """A worker starts: its sweeper rings again, and may go by another flush_every."""
        name = self.world.rng.choice(("anne", "bert", "carl"))
        self._sweepers[self.world.rng.randrange(2)] = self._sweeper(name)

    def _wait(self) -> None:
        """Time goes by."""
        passed_ms = (1, 20, 300, SECOND, 5 * SECOND, LEASE * SECOND + 1)
        self.world.now_ms += self.world.rng.choice(passed_ms)

    def _stop_or_start_the_broker(self) -> None:
        """While it is down every doorbell is lost."""
        self.world.broker_is_up = not self.world.broker_is_up

    def _deliver_late(self) -> None:
        """A call to Redis that its client had given up arrives after all."""
        world, late = self.world, self.world.store.late
        if late:
            world.played["late_call"] += 1
            world.touched = True
            late.pop(world.rng.randrange(len(late)))()

    def _set_the_clock(self) -> None:
        """By seconds, as a time server does it; by hours, as people do."""
        steps_ms = (-5 * HOUR, -HOUR, -40 * SECOND, -SECOND, HOUR, 5 * HOUR)
        step_ms = self.world.rng.choice(steps_ms)
        self.world.now_ms += step_ms
        self.world.set_ms += step_ms
        self.world.clock_is_sound = False
        self.world.played["clock_jump"] += 1

    def _replicate(self) -> None:
        """A replica gets everything that was written so far."""
        client = self.world.client
        self._replica = {key: client.dump(key) for key in self._keys()}

    def _fail_over(self) -> None:
        """The replica takes over: what it has not got is gone, what it still has comes back."""
        world = self.world
        world.played["failover"] += 1
        world.touched = True
        if keys := self._keys():
            world.client.delete(*keys)
        for key, dump in self._replica.items():
            world.client.restore(key, 0, dump)
        world.now_ms += SECOND
        # What is still on its way goes to the old server.
        world.store.late.clear()
        stored = {world.call_of(item.envelope).serial for item in world.read().items.values()}
        for call in world.calls.values():
            call.moved = call.forgotten = True
            # Which the new primary may not have heard of.
            call.revoked = None
            if call.serial in stored:
                call.again += 1
                # At most once does not survive the loss of what said that it ran.
                call.allowed = sys.maxsize
                call.ended_step = None
            elif not call.told:
                call.lost = True

    def _keys(self) -> list[bytes]:
        return sorted(self.world.client.keys(f"rb:{{{self.world.store.settings.namespace}/*"))

    # -- After every step

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Checks every guarantee after a step."""
        world = self.world
        world.times.append(world.now_ms)
        yield
        if world.touched:
            world.touched = False
            world.state = world.read()
            world.state.check()
            self._check_calls()
            self._check_order()
        self._check_wake_up()

    def _check_calls(self) -> None:
        """Nothing leaves Redis before its caller was told, and nobody is told twice."""
        world = self.world
        stored = {world.call_of(item.envelope).serial for item in world.state.items.values()}
        for call in world.calls.values():
            ensure(len(call.told) <= 1 + call.again, "told twice", call)
            if call.serial not in stored:
                ensure(call.told or call.lost, "lost", call)
                if call.ended_step is None:
                    call.ended_step = len(world.times) - 1

    def _check_order(self) -> None:
        """What was never claimed stays in the order of its calls."""
        world = self.world
        for entries in world.state.pending.values():
            fresh = [entry.id for entry in entries if entry.split == FRESH]
            calls = [world.call_of(world.state.items[task_id].envelope) for task_id in fresh]
            serials = [call.serial for call in calls if not call.moved]
            ensure(serials == sorted(serials), "not in the order of calls", serials)

    def _check_wake_up(self) -> None:
        """What can be claimed was rung for, or the next sweep rings; after a pause it rings again.

        Not before a sweep has corrected what a setting of the clock spoilt.
        """
        world, weather = self.world, self.world.weather
        if not world.clock_is_sound:
            return
        for group, entries in world.state.pending.items():
            if not entries:
                continue
            out, _, pause_ms = world.state.bell(group)
            wait_ms = world.state.groups[group] - world.now_ms
            ensure(wait_ms <= max(weather.longest_ms, pause_ms), "waits for too long", wait_ms)
            head = entries[0]
            due = head.split != FRESH or head.since_ms + weather.longest_ms <= world.now_ms
            if due or len(entries) >= weather.largest:
                ensure(out or wait_ms <= 0, "a batch waits, and nobody is woken", group)

    # -- The end

    def _drain(self) -> None:
        """Without further faults everything ends: after the lease, a pause, delays and crashes."""
        world = self.world
        world.faults, world.broker_is_up = False, True
        world.store.late.clear()
        deadline_ms = self._deadline()
        while world.state.waiting or world.state.leases or world.state.groups:
            while world.broker:
                with self._checked():
                    self.workers.answer()
            while self.workers.runs:
                with self._checked():
                    self.workers.go_on(self.workers.runs[0])
            with self._checked():
                wait = self._sweepers[0].tick()
            if not world.broker:
                ensure(world.now_ms <= deadline_ms, "something never ends", world.state.items)
                self._wait_for_attention(wait)

    def _deadline(self) -> int:
        world = self.world
        state = world.state
        latest_ms = max((world.now_ms, *state.eta.values(), *state.delayed.values()))
        poison = sum(call.poison for call in world.calls.values())
        crashes = poison * (math.log2(16) + MAX_CRASHES_ALONE)
        # What the clock put into the future waits for it, then for its interval.
        intervals_ms = world.weather.longest_ms * (2 if world.weather.clock_jumps else 1)
        once_ms = intervals_ms + LEASE * SECOND + MAX_PAUSE_MS + 10 * SECOND
        return latest_ms + round((1 + crashes) * once_ms)

    def _wait_for_attention(self, seconds: float) -> None:
        """Skips the ticks that would find nothing."""
        state = self.world.state
        places = (state.groups, state.leases, state.delayed, state.eta)
        first_ms = min((ms for scores in places for ms in scores.values()), default=0)
        passed_ms = self.world.now_ms + math.ceil(seconds * SECOND)
        self.world.now_ms = max(passed_ms, first_ms + 1)

    def _check_end(self) -> None:
        """Everybody was told; no innocent request died; nothing is left but dead letters."""
        world = self.world
        for call in world.calls.values():
            ensure(call.lost or call.told, "its caller was never told", call)
            most = (1 + call.again) * (math.log2(16) + MAX_CRASHES_ALONE)
            ensure(call.crashes <= most, "it killed too many workers", call)
        for name in ("claims", "own", "groups", "bells", "delayed", "eta", "stale"):
            ensure(not getattr(world.state, name), "left behind", name)
        ensure(len(world.state.dead) == len(world.state.items), "left behind", world.state.items)
        lists = world.client.keys(f"{raw.keys(world.store).batch('')}*")
        ensure(not lists, "left behind", lists)


def play(client: redis.Redis, seed: int) -> Counter[str]:
    """Plays one seed; returns how often each kind of fault was played."""
    game = Simulation(client, seed)
    game.play()
    return game.world.played


def main(argv: Sequence[str] | None = None) -> int:
    """Plays many seeds; prints those that fail."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default: %(default)s)")
    parser.add_argument("--url", help="a Redis or Valkey server; default: fakeredis")
    options = parser.parse_args(argv)
    logging.getLogger("redis_batches").setLevel(logging.ERROR)
    client = redis.Redis.from_url(options.url) if options.url else fakeredis.FakeRedis()
    failed, started = [], time.monotonic()
    played: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.seeds):
        try:
            played += play(client, seed)
        except AssertionError as exc:
            failed.append(seed)
            print(f"seed {seed}: {exc}", flush=True)
    seconds = time.monotonic() - started
    print(f"{options.seeds} seeds in {seconds:.1f} s, {len(failed)} failed: {failed}")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(played.items()))
    print(f"{played.total():,} faults in those that passed: {kinds}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
