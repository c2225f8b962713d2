"""What one Celery app shares between its batch tasks: settings, the connection, doorbells."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import redis
from celery.exceptions import ImproperlyConfigured

from redis_batches.app.address import address_of
from redis_batches.app.publisher import Publisher
from redis_batches.app.ringer import Cause, Ringer
from redis_batches.buffer.group_commit import Committer
from redis_batches.buffer.registry import Registry
from redis_batches.buffer.store import Store
from redis_batches.core.errors import OptionError
from redis_batches.core.model import Bells
from redis_batches.core.outage import Breaker, Quiet
from redis_batches.core.settings import HEARTBEATS_PER_LEASE, Settings
from redis_batches.driver.connection import connect
from redis_batches.driver.patience import guard
from redis_batches.driver.preflight import check_server
from redis_batches.driver.server_errors import translated
from redis_batches.upkeep.heartbeat import Heartbeat

#: Seconds for which an event loop waits for Redis, at most.
MOMENT = 1.0
#: What forks have left behind.
_inherited: list[Any] = []


class Runtime:
    """The state of this package in one app and one process."""

    def __init__(self, app: Any) -> None:
        self.app = app
        #: The shortest flush interval of the app's batch tasks, in seconds.
        self.shortest = math.inf
        #: Whether the app has the sweep task and its workers the sweeper.
        self.installed = False
        #: Whether this worker limits its runs, so that none may go on; True if it is none.
        self.limits_runs = True
        #: The time limits that this worker's pool enforces: "hard", "soft".
        self.enforced_limits: frozenset[str] = frozenset()
        self._pid = 0
        self._client: redis.Redis | None = None
        self._single_try_client: redis.Redis | None = None
        self._breakers: dict[str, Breaker] = {}
        self._guarded: dict[str, redis.Redis] = {}
        self._publisher: Publisher | None = None
        self._ringer: Ringer | None = None
        self._heartbeat: Heartbeat | None = None
        self._stores: dict[str, Store] = {}
        self._committers: dict[str, Committer] = {}
        #: Says when what passes by itself may be logged again.
        self.quiet = Quiet()

    @cached_property
    def settings(self) -> Settings:
        """The app's settings, read at their first use.

        Raises:
            ImproperlyConfigured: One of them is not allowed.
        """
        try:
            return Settings.read(self.app.conf, self.app.namespace)
        except OptionError as exc:
            raise ImproperlyConfigured(str(exc)) from exc

    @cached_property
    def _alone(self) -> Settings:
        """The settings, for what keeps an event loop waiting and so waits for no replica."""
        return replace(self.settings, wait_replicas=0)

    @property
    def client(self) -> redis.Redis:
        """This process's own connection."""
        self._after_fork()
        if self._client is None:
            found = self.settings
            self._client = self._connect(found.timeout, found.retries, found.deadline)
        return self._client

    @property
    def heartbeat(self) -> Heartbeat:
        """Keeps the leases of this process."""
        self._after_fork()
        if self._heartbeat is None:
            interval = self.settings.lease / HEARTBEATS_PER_LEASE
            self._heartbeat = Heartbeat(interval, self._stores_of_one_thread())
        return self._heartbeat

    def _after_fork(self) -> None:
        """Drops what a fork inherited: sockets that are another's, threads that do not run."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._client, self._single_try_client, self._heartbeat = None, None, None
            self._stores, self._committers, self._breakers, self._guarded = {}, {}, {}, {}
            if self._publisher is not None:
                # Kept, because the end of its connections would end those of the parent.
                _inherited.append(self._publisher)
            self._publisher, self._ringer = None, None

    def store(self, task: str) -> Store:
        """Returns the store of a task."""
        client = self.client
        if task not in self._stores:
            self._stores[task] = Store(client, self.settings, task)
        return self._stores[task]

    def committer(self, task: str) -> Committer:
        """Returns what the threads of this process share to push requests of a task."""
        self._after_fork()
        found = self._committers.get(task)
        if found is None:
            settings = self.settings
            made = Committer(self.store(task).push, settings.deadline, settings.timeout)
            # Two threads may come first at once: both take the one that is kept.
            found = self._committers.setdefault(task, made)
        return found

    def sweeping_store(self, task: str) -> Store:
        """Returns a store that rather gives up than keeps a worker's event loop waiting."""
        return Store(self._guard("loop"), self._alone, task)

    def sweepers_store(self, task: str) -> Store:
        """Returns a store for who sweeps beside an event loop: it soon tries again."""
        return Store(self._guard("sweeper"), self._alone, task)

    def _guard(self, role: str) -> redis.Redis:
        """Returns a client that sends once, waits for a moment, and fails at once in an outage."""
        self._after_fork()
        if not self._breakers:
            slow = min(self.settings.timeout, MOMENT) / 2
            loop = Breaker("Redis", slow=slow, pause=5.0, longest=30.0)
            sweeper = Breaker("Redis", slow=slow, pause=1.0, longest=1.0, followers=(loop,))
            self._breakers = {"loop": loop, "sweeper": sweeper}
        if role not in self._guarded:
            seconds, breaker = min(self.settings.timeout, MOMENT), self._breakers[role]
            with breaker.attempt():
                client = self._connect(seconds, 0, seconds, patient=False)
            guard(client, breaker)
            self._guarded[role] = client
        return self._guarded[role]

    def single_try_store(self, task: str) -> Store:
        """Returns a store that sends each command once: its caller decides what happens then."""
        self._after_fork()
        if self._single_try_client is None:
            found = self.settings
            self._single_try_client = self._connect(found.timeout, 0, found.deadline, patient=False)
        return Store(self._single_try_client, self.settings, task)

    def _stores_of_one_thread(self) -> Callable[[str], Store]:
        """Returns what makes a task's store on a connection of the thread that calls it first."""
        clients: list[redis.Redis] = []

        def store_of(task: str) -> Store:
            if not clients:
                found = self.settings
                clients.append(self._connect(found.timeout, found.retries, found.deadline))
            return Store(clients[0], self.settings, task)

        return store_of

    @property
    def registry(self) -> Registry:
        """The tasks of this namespace that workers serve."""
        return Registry(self._guard("sweeper"), self.settings.namespace)

    def check_server(self) -> None:
        """Looks at the server in the event loop of a worker; see `server.check_server`."""
        check_server(self._guard("loop"))

    @property
    def publisher(self) -> Publisher:
        """Publishes the doorbells of this process."""
        self._after_fork()
        if self._publisher is None:
            self._publisher = Publisher(self.app)
        return self._publisher

    @property
    def ringer(self) -> Ringer | None:
        """Rings for the event loop of a worker; None: this process is no worker's main process."""
        self._after_fork()
        return self._ringer

    def start_ringer(self, ring: Callable[[str, Bells, Cause], None]) -> Ringer:
        """Returns what rings beside the event loop of a worker; see `Ringer`."""
        self._after_fork()
        if self._ringer is None:
            self._ringer = Ringer(ring)
        return self._ringer

    def _connect(
        self, timeout: float, retries: int, deadline: float, *, patient: bool = True
    ) -> redis.Redis:
        url, options = address_of(self.app.conf, self.settings.url)
        try:
            with translated("connect"):
                return connect(url, timeout, retries, options, deadline, patient)
        except ValueError as exc:
            raise ImproperlyConfigured(str(exc)) from exc


def runtime_of(app: Any) -> Runtime:
    """Returns the runtime of an app, which keeps it."""
    app = getattr(app, "_get_current_object", lambda: app)()
    found: Runtime | None = app.__dict__.get("_redis_batches")
    return found or app.__dict__.setdefault("_redis_batches", Runtime(app))
