"""A worker that is this process: batches run when a test says so, and time passes at its will."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from celery import Celery
from celery.backends.redis import RedisBackend

from redis_batches import SimpleRequest, batched_task
from redis_batches.app import doorbell
from redis_batches.app.state import runtime_of
from redis_batches.buffer.store import Store
from redis_batches.core.triggers import Bells
from redis_batches.testing.clock import Clock
from redis_batches.upkeep.sweeper import Served, Sweeper
from redis_batches.worker.served import batch_tasks

if TYPE_CHECKING:
    from fakeredis import FakeServer

HOSTNAME = "worker@here"


class Rung(NamedTuple):
    """One doorbell: of which task, for what, and whether a batch runs that is not due."""

    task: str
    bells: Bells
    force: bool


class Worker:
    """Has the doorbells of an app's batch tasks, and answers them in this process.

        with Worker(app) as worker:
            result = translate.delay("un")
            worker.wait(10)
            assert result.get() == "one"

    Only batches run here: the app's other tasks go to its broker.

    Args:
        app: The app; none of its batch tasks may have been called in this process before.

    Attributes:
        clock: The time of Redis, as far as this app sees it; `wait` moves it.
        rung: Doorbells that nobody has answered, oldest first.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.clock = Clock()
        self.rung: list[Rung] = []
        self._numbers = count(1)
        self._sweeper = Sweeper(self._served, partial(doorbell.ring, app), interval=1.0)
        self._patches = ExitStack()

    def __enter__(self) -> Worker:
        make_store = partial(Store, clock=self.clock)
        self._patches.enter_context(patch("redis_batches.buffer.stores.Store", make_store))
        caught = _caught(self.app, lambda *rung: self.rung.append(Rung(*rung)))
        self._patches.enter_context(caught)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._patches.close()

    def work(self) -> None:
        """Runs what is due: answers doorbells until there are none.

        What a function raises is for its calls, as in any worker; here nobody logs it.
        """
        while self.rung:
            task, bells, force = self.rung.pop(0)
            with suppress(Exception):
                _answer(self.app.tasks[task], bells, next(self._numbers), force=force)

    def wait(self, seconds: float) -> None:
        """Lets time pass, then sweeps and runs what is due."""
        self.clock.advance(round(seconds * 1000))
        self._sweeper.tick()
        self.work()

    def die(self) -> None:
        """Answers a doorbell and dies with its batch: nobody settles it, and its lease ends."""
        name, bells, _ = self.rung.pop(0)
        trigger = self.app.tasks[name].trigger
        runtime_of(self.app).store(name).claim(bells.group, trigger)

    def _served(self) -> list[Served]:
        store = runtime_of(self.app).store
        return [Served(store(task.name), task.trigger) for task in batch_tasks(self.app)]


class InProcess:
    """One task, the doorbells that were rung for it, and a way to answer them.

    Attributes:
        task: The task.
        bells: Doorbells that nobody has answered, oldest first.
    """

    def __init__(self, task: Any, bells: list[Bells]) -> None:
        self.task = task
        self.bells = bells
        self._numbers = count(1)

    def answer(self, *, force: bool = False, drain_on: bool = False) -> None:
        """Runs the task as a worker does that got the newest doorbell."""
        number = next(self._numbers)
        _answer(self.task, self.bells.pop(), number, force=force, drain_on=drain_on)


@contextmanager
def in_process(
    function: Callable[[list[SimpleRequest]], Any],
    flush_every: int,
    *,
    results: FakeServer | None = None,
    **options: Any,
) -> Iterator[InProcess]:
    """Makes a task of a function; its requests wait in a fake Redis, which fakeredis brings.

    Args:
        function: What runs the batches.
        flush_every: Requests of a full batch.
        results: The fake Redis that is its result backend; by default they are in memory.
        options: Of the task.
    """
    from fakeredis import FakeRedis, FakeServer

    server, rung = FakeServer(), list[Bells]()
    with ExitStack() as patches:
        connect = patch("redis_batches.buffer.stores.connect", lambda *_: FakeRedis(server=server))
        patches.enter_context(connect)
        backend = "cache+memory://"
        if results is not None:
            backend = "redis://127.0.0.1:1/1"
            patches.enter_context(_results_in(FakeRedis(server=results)))
        app = Celery("here", broker="memory://", backend=backend, set_as_current=False)
        # Celery itself would try again for 20 seconds.
        app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 1}}
        app.conf.redis_batches_url = "redis://127.0.0.1:1/0"
        app.conf.redis_batches_max_dead = 1_000_000
        app.conf.result_cache_max = -1
        patches.enter_context(_caught(app, lambda _, bells, __: rung.append(bells)))
        make = batched_task(flush_every, 10, app=app, name="here", shared=False, **options)
        make(function)
        yield InProcess(app.tasks["here"], rung)
        app.close()


@contextmanager
def _caught(app: Any, note: Callable[[str, Bells, bool], None]) -> Iterator[None]:
    """Has the doorbells of an app noted instead of published."""
    publish = doorbell._publish

    def catch(
        of: Any, producer: Any, task: str, bells: Bells, priority: int | None, force: bool
    ) -> None:
        if of is app:
            note(task, bells, force)
        else:
            publish(of, producer, task, bells, priority, force)

    with patch.object(doorbell, "_publish", catch):
        yield


@contextmanager
def _results_in(client: Any) -> Iterator[None]:
    """Has Redis result backends use a client; nobody listens there, which takes another one."""
    with ExitStack() as patches:
        patches.enter_context(patch.object(RedisBackend, "_create_client", lambda *_, **__: client))
        for name in ("consume_from", "cancel_for"):
            patches.enter_context(patch.object(RedisBackend.ResultConsumer, name, lambda *_: None))
        yield


def _answer(
    task: Any, bells: Bells, number: int, *, force: bool = False, drain_on: bool = False
) -> None:
    """Runs a task as a worker does that got a doorbell; raises what Celery is told of the run."""
    marker = {"group": bells.group, "rung_ms": bells.rung_ms, "force": force}
    marker |= {doorbell.DRAIN_ON: drain_on, doorbell.ENFORCED: True}
    task.push_request(
        id=f"bell-{number}",
        hostname=HOSTNAME,
        called_directly=False,
        **{doorbell.MARKER: marker},
    )
    try:
        task.run()
    finally:
        task.pop_request()
