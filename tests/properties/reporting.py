"""A deterministic simulation of the way back: what a run made of its calls, and what they are told.

One process plays callers, workers and sweepers around the real runner, batch, completion and result
code. A seed decides what the function does with each call, with odd values in odd places, and what
goes wrong at which command of the store or of the result backend: it fails, for a moment or for
long, it is slow, the process is stopped there past its lease while another one goes on, or it ends.
After every command nothing may have left Redis that was not told, and no final state may have been
replaced; in the end, with no more faults, each call has the one final state that its runs allow.

    python -m tests.properties.reporting --seeds 5000 --url redis://localhost:6379/0

A seed that fails once belongs into FAILED_SEEDS, which every run of the tests repeats.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from celery import Celery, states
from celery.backends.redis import RedisBackend
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate

from redis_batches import SimpleRequest, batched_task
from redis_batches.app import doorbell
from redis_batches.app.state import Runtime, runtime_of
from redis_batches.buffer.store import Store
from redis_batches.core.errors import BatchesError
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Bells
from redis_batches.driver.scripts import load_scripts
from redis_batches.driver.sources import folder
from redis_batches.runs.running import running
from redis_batches.upkeep.sweeper import Served, Sweeper
from tests.properties import fates, outages
from tests.properties.fates import MAX_RETRIES, OWN_FAILURE, Call, Wrong
from tests.properties.outages import LEASE, Died, Fault, Outages
from tests.support import raw
from tests.support.state import ensure

FAILED_SEEDS = (13, 152, 153, 279, 343, 499, 630)

MAX_PUT_BACKS = 6
#: Runs that die alone before a request is given up, and those before in which it was not alone.
CRASHES, HALVINGS = 3, 3
#: Rounds that a game lasts while faults go on, and that its end may take.
ROUNDS, LAST_ROUNDS = 16, 400
#: Doorbells that others answer at a time while one worker stands still.
OTHERS = 4
#: Options of the tasks: those with which `retry` and autoretry have to cope.
TASKS: tuple[dict[str, Any], ...] = (
    {},
    {"autoretry_for": (Wrong,)},
    {"autoretry_for": (Wrong,), "default_retry_delay": None},
    {"autoretry_for": (Wrong,), "default_retry_delay": timedelta(seconds=5)},
    {"autoretry_for": (Wrong,), "retry_kwargs": {"countdown": 0, "priority": 3}},
    {"autoretry_for": (Wrong,), "retry_kwargs": {"queue": "others"}},
    {"autoretry_for": (Wrong,), "retry_kwargs": {"countdown": "5"}},
    {"autoretry_for": (Wrong,), "retry_backoff": True, "retry_jitter": False},
    {"autoretry_for": (Exception,), "default_retry_delay": 1},
)
#: Those that no retry can go by.
ODD_TASKS = (TASKS[3], TASKS[6])


class House:
    """One app with its tasks and servers, for any number of games.

    Attributes:
        clients: Of the store and of the result backend.
        rung: Doorbells that nobody has answered.
        game: The one that is played now.
    """

    def __init__(self, url: str | None) -> None:
        self.clients = {where: outages.connect(where, url) for where in ("store", "results")}
        # Else the first game would send each script twice, and meet its faults earlier.
        for script in load_scripts().values():
            self.clients["store"].script_load(script.source)
        self.clients["results"].script_load((folder() / "results" / "store.lua").read_text())
        self.namespace = f"reporting-{uuid4().hex[:12]}"
        self.rung: list[Bells] = []
        self.game: Game | None = None
        self.app = self._make_app()
        self.tasks = [self._make_task(number, options) for number, options in enumerate(TASKS)]
        self.app.finalize()

    def _make_app(self) -> Celery:
        app = Celery(
            "way_back", broker="memory://", backend="redis://127.0.0.1:1/1", set_as_current=False
        )
        app.conf.update(
            redis_batches_url="redis://127.0.0.1:1/0",
            redis_batches_namespace=self.namespace,
            redis_batches_max_dead=1_000_000,
            redis_batches_lease=LEASE,
            result_cache_max=-1,
            result_backend_transport_options={
                "global_keyprefix": f"{self.namespace}-",
                "retry_policy": {"max_retries": 1},
            },
        )
        if "max_put_backs" in {field.name for field in fields(Settings)}:
            app.conf.redis_batches_max_put_backs = MAX_PUT_BACKS
        app.now = lambda: datetime.fromtimestamp(self.world.now, timezone.utc)
        return app

    def _make_task(self, number: int, options: dict[str, Any]) -> Any:
        more = {"max_retries": MAX_RETRIES, "shared": False, **options}
        make = batched_task(4, 10, app=self.app, name=f"task-{number}", **more)

        def function(requests: list[SimpleRequest]) -> Any:
            return self.game.run(requests)

        make(function)
        return self.app.tasks[f"task-{number}"]

    @property
    def world(self) -> Outages:
        """The one of the game that is played now."""
        return self.game.world

    @contextmanager
    def open(self) -> Iterator[House]:
        """Puts the game's clock, servers and broker in the place of the real ones."""
        with pytest.MonkeyPatch.context() as patch:
            self._stop_time(patch)
            client = self.clients["results"]
            patch.setattr("redis_batches.buffer.stores.connect", lambda *_: self.clients["store"])
            patch.setattr(Runtime, "heartbeat", property(lambda _: Heartbeat(self)))
            patch.setattr(RedisBackend, "_create_client", lambda *_, **__: client)
            for name in ("consume_from", "cancel_for"):
                patch.setattr(RedisBackend.ResultConsumer, name, lambda *_: None)
            patch.setattr(self.app.backend, "on_chord_part_return", self._count_part)
            patch.setattr(doorbell, "_publish", self._publish)
            # Else what ends at the same time would end in another order each time.
            patch.setattr(doorbell, "uuid4", lambda: UUID(int=self.game.rng.getrandbits(128)))
            yield self

    def _stop_time(self, patch: pytest.MonkeyPatch) -> None:
        names = ("sleep", "monotonic")
        ours = [module for name, module in sys.modules.items() if name.startswith("redis_batches.")]
        for module in (*ours, sys.modules["kombu.utils.functional"]):
            for name in names:
                if getattr(module, name, None) is getattr(time, name):
                    patch.setattr(
                        module, name, lambda *args, at=name: getattr(self.world, at)(*args)
                    )
        make = Store.__init__

        def make_with_clock(store: Store, *args: Any, **kwargs: Any) -> None:
            make(store, *args, **kwargs)
            store._redis.clock = lambda: self.world.clock()

        patch.setattr(Store, "__init__", make_with_clock)

    def _publish(self, *args: Any) -> None:
        self.world.command("ring", "PUBLISH", [], lambda: self.rung.append(args[3]))

    def _count_part(self, request: Any, state: str, *_: Any, **__: Any) -> None:
        game = self.game
        self.world.command("results", "PART", [], lambda: game.count_part(request.id, state))

    def play(self, seed: int) -> Counter[str]:
        """Plays one seed; returns how often each kind of fault was played."""
        self.game = game = Game(self, seed)
        for client in self.clients.values():
            client.outages = game.world
        self.app.backend.__dict__.pop("redis_batches_asks_again", None)
        running.clear()
        self.rung.clear()
        try:
            game.play()
        finally:
            self._clean()
        return game.world.played

    def _clean(self) -> None:
        for client in self.clients.values():
            client.outages = None
            keys = [*client.keys(f"rb:{{{self.namespace}*"), *client.keys(f"{self.namespace}-*")]
            if keys:
                client.delete(*keys)


class Heartbeat:
    """Keeps leases as the real one does, but by the game's clock."""

    def __init__(self, house: House) -> None:
        self._house = house

    @contextmanager
    def keep(self, lease: Any) -> Iterator[None]:
        """Keeps a lease alive until the block ends."""
        process = self._house.world.process
        kept = process.kept if process else []
        kept.append(lease)
        try:
            yield
        finally:
            kept.remove(lease)


class Game:
    """One seed.

    Args:
        house: Where it is played.
        seed: Decides everything.
    """

    def __init__(self, house: House, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.house = house
        self.task = rng.choice(house.tasks)
        self.options = TASKS[house.tasks.index(self.task)]
        self.task.flush_every = rng.choice((1, 2, 3, 4, 8))
        faults = [Fault.draw(rng) for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3)))]
        self.world = Outages(faults, self._look, self._others_go_on)
        self.calls: dict[int, Call] = {}
        self.by_id: dict[str, Call] = {}
        self.parts: dict[str, set[str]] = {}
        self.problems: list[str] = []
        self._owners: dict[str, str] = {}
        self._answered = 0
        self._shape = rng.choice(("list", "list", "tuple", "dict", "none", "pop"))
        self._lenient = rng.random() < 0.5
        with self.world.nobody():
            self.store = Store(
                house.clients["store"], runtime_of(house.app).settings, self.task.name
            )
        self._sweeper = Sweeper(
            lambda: [Served(self.store, self.task.trigger)], self._ring, interval=1.0
        )

    # -- callers

    def _call(self) -> None:
        """Somebody calls the task, perhaps with something that hangs on the call."""
        rng, call = self.rng, self._new_call()
        options: dict[str, Any] = {"task_id": call.id}
        # Celery sends the next step before it stores a result: if it cannot, both fail.
        stores = not any(fate.endswith(("opaque", "explosive")) for fate in call.fates)
        if stores and rng.random() < 0.2:
            following = self._new_call(["return"])
            following.follows = call
            options["chain"] = [self._signature(following)]
        if rng.random() < 0.2:
            options["link"] = self._signature(self._new_call(["return"]))
        if rng.random() < 0.2:
            options.update(chord=self.task.si(-1), group_id="group")
            self.parts[call.id] = set()
        self.task.apply_async((call.serial,), **options)
        call.accepted = True

    def _new_call(self, what: list[str] | None = None) -> Call:
        serial = len(self.calls)
        call = Call(serial, f"call-{serial}", what or fates.draw(self.rng))
        call.covered = self.options.get("autoretry_for", ())
        call.oddly = self.options in ODD_TASKS
        self.calls[serial] = self.by_id[call.id] = call
        return call

    def _signature(self, call: Call) -> Any:
        return self.task.si(call.serial).set(task_id=call.id)

    # -- the function

    def run(self, requests: list[SimpleRequest]) -> Any:
        """The batch function of every task."""
        process = self.world.process
        handed = list(requests)
        calls = [self.calls[request.args[0]] for request in handed]
        self._check_begin(handed, calls)
        for call in calls:
            call.runs += 1
        raising = next((c.fate for c in calls if c.fate in (*fates.RAISED, *fates.WHOLE)), "")
        try:
            open_calls = self._settle_some(calls, handed)
            if raising:
                self._end(raising, open_calls, handed)
            returned = self._results(open_calls, calls, requests, raising)
        except BaseException as exc:
            self._note_raised(exc, [c for c in calls if not _is_decided(c, handed)])
            raise
        finally:
            self._note_end(calls, process)
        return returned

    def _check_begin(self, handed: list[SimpleRequest], calls: list[Call]) -> None:
        process = self.world.process
        with self.world.nobody():
            owners = self._read_owners()
        for request, call in zip(handed, calls, strict=True):
            batch = request.batch
            self._ensure(1 <= len(handed) <= self.task.flush_every, "too many requests", handed)
            if owners.get(call.id) != batch.token:
                # Nothing can tell a process that it was stopped after its last look.
                late = process is not None and process.stalled_at == "extend"
                self._ensure(late, "runs what another worker took over", call)
            elif not call.moved and not self._was_sent_anew(call):
                number = call.claims.index(batch.token) + 1
                self._ensure(request.attempt == number, "attempt", request.attempt, number, call)

    @staticmethod
    def _was_sent_anew(call: Call) -> bool:
        """Whether a step of a chain runs that had ended: the step before it sent it once more.

        It did so so late that nobody remembers the end; its attempts are forgotten, too.
        """
        return call.follows is not None and call.final is not None

    def _settle_some(self, calls: list[Call], handed: list[SimpleRequest]) -> list[Call]:
        """Settles requests one by one; returns the calls that are still undecided."""
        undecided = []
        for call, request in zip(calls, handed, strict=True):
            fate = call.fate
            try:
                if fate == "call again":
                    self._call_again(call)
                elif not fates.settle(call, request, fate, self.rng):
                    undecided.append(call)
            except Exception as exc:
                if _is_outside(exc) or not self._lenient:
                    raise
                undecided.append(call)
        return undecided

    def _call_again(self, call: Call) -> None:
        call.moved = True
        call.fates = ["return"]
        try:
            self.task.apply_async((call.serial,), task_id=call.id)
        except BatchesError as exc:
            # As any error of the function's own.
            raise ValueError("not called again") from exc

    def _end(self, fate: str, open_calls: list[Call], handed: list[SimpleRequest]) -> None:
        """Ends the run by an exception, if the fate does that."""
        if fate == "killed":
            self.world.process.struck.append(Fault("", "die", 0))
            self.world.process.dead = True
            raise Died
        if fate in ("retry all", "retry all odd", "raise Retry odd"):
            self._retry_all(fate, open_calls)
        if fate in fates.RAISED:
            raise fates.RAISED[fate]()

    def _retry_all(self, fate: str, open_calls: list[Call]) -> None:
        for call in open_calls:
            if call.runs > MAX_RETRIES or "odd" in fate or "default_retry_delay" in self.options:
                call.may_fail_somehow()
        if fate == "raise Retry odd":
            raise Retry(exc=fates.Unlike(needed=1), when=self.rng.choice(fates.ODD_WHEN))
        odd = self.rng.choice(fates.ODD_SECONDS)
        self.task.retry(countdown=odd if fate == "retry all odd" else 3)

    def _note_raised(self, exc: BaseException, open_calls: list[Call]) -> None:
        """Notes what calls may be told because their function raised."""
        for call in open_calls:
            if isinstance(exc, (Retry, Died, WorkerShutdown, WorkerTerminate)) or _is_outside(exc):
                continue
            if isinstance(exc, Ignore):
                call.silent = True
            elif isinstance(exc, Reject):
                call.put_backs += exc.requeue
                if not exc.requeue or call.put_backs >= MAX_PUT_BACKS:
                    call.may_fail_somehow()
            elif isinstance(exc, Exception):
                call.may_fail(exc)
            elif isinstance(exc, (SystemExit, KeyboardInterrupt)):
                self.world.process.struck.append(Fault("", "die", 0))
            else:
                call.may.add(("FAILURE", "WorkerLostError"))

    def _note_end(self, calls: list[Call], process: outages.Process | None) -> None:
        troubled = process is not None and bool(process.struck)
        for call in calls:
            call.clean += not troubled
            if process is not None and process.cannot_tell:
                call.untold.append(self.world.now)

    def _results(
        self, open_calls: list[Call], calls: list[Call], requests: list[SimpleRequest], fate: str
    ) -> Any:
        """Returns what the function returns."""
        if fate == "wrong length":
            for call in open_calls:
                call.may_fail_somehow()
            return [1] * (len(calls) + 1)
        if fate == "wrong type":
            for call in open_calls:
                call.may_fail_somehow()
            return 5
        values = {call.id: self._value(call) for call in calls}
        for call in open_calls:
            self._note_value(call, None if self._shape == "none" else values[call.id])
        if self._shape == "none":
            return None
        if self._shape == "dict":
            return values
        if self._shape == "pop":
            while requests:
                requests.pop()
        found = list(values.values())
        return tuple(found) if self._shape == "tuple" else found

    def _value(self, call: Call) -> Any:
        return fates.PLACED[call.fate]() if call.fate in fates.PLACED else call.value

    def _note_value(self, call: Call, value: Any) -> None:
        if isinstance(value, (Ignore, Reject, Retry)):
            call.silent = call.silent or isinstance(value, Ignore)
            call.put_backs += isinstance(value, Reject)
            call.may_fail_somehow()
        elif isinstance(value, Exception):
            call.may_fail(value)
        else:
            call.may_succeed(value)

    # -- workers

    def _ring(self, _: str, bells: Bells) -> None:
        self.house.rung += [bells] * bells.count

    def _answer(self) -> None:
        """A worker answers the oldest doorbell, in a process of its own."""
        bells = self.house.rung.pop(0)
        self._answered += 1
        marker = {"group": bells.group, "rung_ms": bells.rung_ms}
        request = {"id": f"bell-{self._answered}", "hostname": "worker@here"}
        others, before = dict(running), {i: len(c.claims) for i, c in self.calls.items()}
        running.clear()
        with self.world.answering() as process:
            self.task.push_request(called_directly=False, **request, **{doorbell.MARKER: marker})
            try:
                self.task.run()
            except BaseException as exc:
                if isinstance(exc, AssertionError):
                    raise
            finally:
                self.task.pop_request()
                running.clear()
                running.update(others)
        if process.met("store"):
            for serial, call in self.calls.items():
                call.crashes += len(call.claims) > before.get(serial, 0)
        with self.world.nobody():
            self._look("store", "", [])

    def _others_go_on(self) -> None:
        """Other workers take over what one that stands still had claimed, and end it."""
        others = dict(running)
        running.clear()
        for _ in range(4):
            self._sweeper.tick()
            for _ in self.house.rung[:OTHERS]:
                self._answer_well()
        running.update(others)

    def _answer_well(self) -> None:
        with self.world.faultless():
            self._answer()

    # -- after every command

    def _look(self, where: str, name: str, keys: list[str]) -> None:
        """Looks what changed on a server."""
        if where == "store":
            owners = self._read_owners()
            for task_id, token in owners.items():
                if self._owners.get(task_id) != token and token not in self.by_id[task_id].claims:
                    self.by_id[task_id].claims.append(token)
            self._owners = owners
            self._look_for_lost()
        else:
            for key in keys:
                _, found, task_id = key.partition("celery-task-meta-")
                if found and task_id in self.by_id:
                    self._look_at_state(self.by_id[task_id])

    def _read_owners(self) -> dict[str, str]:
        found = raw.client(self.store).hgetall(raw.key(self.store, "own"))
        return {i.decode(): token.decode().partition(":")[0] for i, token in found.items()}

    def _look_for_lost(self) -> None:
        """Nothing that was accepted leaves Redis before its caller was told."""
        names = raw.client(self.store).hkeys(raw.key(self.store, "items"))
        stored = {name.decode() for name in names}
        for call in self.calls.values():
            if call.id in stored:
                call.accepted = True
            elif call.accepted and call.final is None and not call.silent:
                self._look_at_state(call)
                self._ensure(call.final, "left Redis before its caller was told", call)

    def _look_at_state(self, call: Call) -> None:
        """A final state is one that the call's runs allow, and is never replaced."""
        meta = self._meta(call)
        if meta["status"] not in states.READY_STATES:
            self._ensure_first(call, meta["status"])
            return
        result = meta["result"]
        if meta["status"] == states.FAILURE:
            result = result["exc_type"]
        final = meta["status"], result
        if call.final == final:
            return
        self._ensure_first(call, final)
        if not self._is_allowed(call, final):
            said = str(meta["result"])[:200]
            self._ensure(False, "was told what did not happen", final, said, call)
        call.final = final

    def _ensure_first(self, call: Call, final: object) -> None:
        """Notes a problem if a call had a final state before."""
        # What failed for an unknown error of the backend's had sent the next step of its chain.
        if call.final is not None and not (call.follows and self._has_unknown_errors):
            self._ensure(False, "a final state was replaced", final, call)

    @property
    def _has_unknown_errors(self) -> bool:
        return any(fault.kind == "unknown" for fault in self.world.faults)

    def _meta(self, call: Call) -> dict[str, Any]:
        client, backend = self.house.clients["results"], self.house.app.backend
        raw = client.get(backend.get_key_for_task(call.id))
        return json.loads(raw) if raw else {"status": states.PENDING, "result": None}

    def _is_allowed(self, call: Call, final: tuple[str, Any]) -> bool:
        if final in call.may:
            return True
        # Celery fails the rest of a chain with the step that failed.
        if call.follows and not call.accepted and self._is_allowed(call.follows, final):
            return True
        state, what = final
        if state != states.FAILURE:
            return False
        if what in BACKEND_ERRORS:
            return self._has_unknown_errors and what == "ResponseError"
        if what == "WorkerLostError" and call.crashes >= CRASHES:
            return True
        return ("FAILURE", OWN_FAILURE) in call.may

    def count_part(self, task_id: str, state: str) -> None:
        """Notes that a part of a chord was counted."""
        self.parts[task_id].add(state)

    def _ensure(self, condition: object, *about: object) -> None:
        """Notes a problem: where it is found, the code that is tested could catch an exception."""
        if not condition:
            self.problems.append(": ".join(map(_shown, about)))

    def _raise_problem(self) -> None:
        if self.problems:
            raise AssertionError(self.problems[0])

    # -- the game

    def play(self) -> None:
        """Plays the whole seed."""
        with self.world.nobody():
            for _ in range(self.rng.choice((1, 2, 4, 6, 9))):
                self._call()
        for _ in range(ROUNDS):
            self._go_round()
            if self.world.over or not self._stored():
                break
        self.world.end()
        for _ in range(LAST_ROUNDS):
            if not self._stored():
                break
            self._go_round()
        self._check_end()

    def _go_round(self) -> None:
        """Time goes on to what wants attention next, somebody sweeps, and workers answer."""
        with self.world.nobody():
            self._wait()
            self._sweeper.tick()
        while self.house.rung:
            self._answer()
            self._check_runs()
            self._raise_problem()

    def _stored(self) -> bool:
        stats = self.store.stats()
        return bool(stats["waiting"] or stats["running"])

    def _wait(self) -> None:
        scores = [
            score
            for name in ("groups", "leases", "delayed", "eta")
            for _, score in raw.client(self.store).zrange(
                raw.key(self.store, name), 0, 0, withscores=True
            )
        ]
        first = min(scores, default=0) / 1000
        self.world.now = max(self.world.now + 1.0, first + 0.001)

    def _check_runs(self) -> None:
        """Nothing runs for ever."""
        for call in self.calls.values():
            bound = 1 + MAX_RETRIES + CRASHES + HALVINGS + MAX_PUT_BACKS + len(call.fates)
            ensure(call.clean <= bound, "runs for ever", _shown(call))

    def _check_end(self) -> None:
        """Everybody was told; what could not be told for long did not run all the time."""
        self._raise_problem()
        ensure(not self._stored(), "something never ends", self.store.stats())
        for call in self.calls.values():
            if call.accepted:
                ensure(call.final or call.silent, "its caller waits for ever", _shown(call))
            if call.untold:
                seconds = call.untold[-1] - call.untold[0]
                most = 5 + math.log2(1 + seconds / 5) + seconds / 600
                ensure(len(call.untold) <= most, "ran although nothing can be told", _shown(call))
        for task_id, told in self.parts.items():
            final = self.by_id[task_id].final
            # What is called again hangs on nothing.
            if final and not self.by_id[task_id].moved:
                ensure(told == {final[0]}, "a part of a chord was counted as", told, final)
        ensure(self.store.ledger()[0] == self.store.ledger()[1], "the ledger does not add up")


BACKEND_ERRORS = {
    kind.__name__ for kind in vars(redis.exceptions).values() if isinstance(kind, type)
} | {"OperationalError", "BackendStoreError"}


def _is_outside(exc: BaseException) -> bool:
    """Whether an exception is no doing of the function's."""
    return isinstance(exc, (redis.RedisError, BatchesError, OSError)) and not isinstance(
        exc, (ValueError, TypeError)
    )


def _is_decided(call: Call, handed: list[SimpleRequest]) -> bool:
    return not any(r.id == call.id and r.settler and r.settler.batch.find(r.id) for r in handed)


def _shown(value: object) -> str:
    try:
        return str(value)
    except BaseException as exc:
        return f"a {type(value).__name__} that raises {type(exc).__name__}"


def main(argv: Sequence[str] | None = None) -> int:
    """Plays many seeds; prints those that fail."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default: %(default)s)")
    parser.add_argument("--url", help="a Redis or Valkey server; default: fakeredis")
    options = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    failed, started = [], time.monotonic()
    played: Counter[str] = Counter()
    with House(options.url).open() as house:
        for seed in range(options.first, options.first + options.seeds):
            try:
                played += house.play(seed)
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
