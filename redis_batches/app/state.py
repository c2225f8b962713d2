"""What one Celery app shares between its batch tasks: settings, the connection, doorbells."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

from celery.exceptions import ImproperlyConfigured

from redis_batches.app.address import Address, address_of
from redis_batches.app.publisher import Publisher
from redis_batches.app.ringer import Cause, Ringer
from redis_batches.buffer.group_commit import Committer
from redis_batches.buffer.registry import Registry
from redis_batches.buffer.store import Store
from redis_batches.buffer.stores import Stores
from redis_batches.core.errors import OptionError
from redis_batches.core.outage import Quiet
from redis_batches.core.settings import HEARTBEATS_PER_LEASE, Settings
from redis_batches.core.triggers import Bells
from redis_batches.upkeep.heartbeat import Heartbeat

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
        self._stores_by_pid: dict[int, Stores] = {}
        self._publisher: Publisher | None = None
        self._ringer: Ringer | None = None
        self._heartbeat: Heartbeat | None = None
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

    @property
    def _stores(self) -> Stores:
        self._after_fork()
        found = self._stores_by_pid.get(self._pid)
        if found is None:
            made = Stores(self.settings, self._address, ImproperlyConfigured)
            # Two threads may come first at once: both take the one that is kept.
            found = self._stores_by_pid.setdefault(self._pid, made)
        return found

    def _address(self) -> Address:
        return address_of(self.app.conf, self.settings.url)

    @property
    def heartbeat(self) -> Heartbeat:
        """Keeps the leases of this process."""
        self._after_fork()
        if self._heartbeat is None:
            interval = self.settings.lease / HEARTBEATS_PER_LEASE
            self._heartbeat = Heartbeat(interval, self._stores.of_one_thread())
        return self._heartbeat

    def _after_fork(self) -> None:
        """Drops what a fork inherited: sockets that are another's, threads that do not run."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._stores_by_pid, self._heartbeat, self._committers = {}, None, {}
            if self._publisher is not None:
                # Kept, because the end of its connections would end those of the parent.
                _inherited.append(self._publisher)
            self._publisher, self._ringer = None, None

    def store(self, task: str) -> Store:
        """Returns the store of a task."""
        return self._stores.of(task)

    def committer(self, task: str) -> Committer:
        """Returns what the threads of this process share to push requests of a task."""
        self._after_fork()
        found = self._committers.get(task)
        if found is None:
            settings = self.settings
            made = Committer(self.store(task).push, settings.deadline, settings.timeout)
            found = self._committers.setdefault(task, made)
        return found

    def sweeping_store(self, task: str) -> Store:
        """Returns a store that rather gives up than keeps a worker's event loop waiting."""
        return self._stores.of_event_loop(task)

    def sweepers_store(self, task: str) -> Store:
        """Returns a store for who sweeps beside an event loop: it soon tries again."""
        return self._stores.of_sweeper(task)

    def single_try_store(self, task: str) -> Store:
        """Returns a store that sends each command once: its caller decides what happens then."""
        return self._stores.single_try(task)

    @property
    def registry(self) -> Registry:
        """The tasks of this namespace that workers serve."""
        return self._stores.registry

    def check_server(self) -> None:
        """Looks at the server in the event loop of a worker; see `Stores.check_server`."""
        self._stores.check_server()

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


def runtime_of(app: Any) -> Runtime:
    """Returns the runtime of an app, which keeps it."""
    app = getattr(app, "_get_current_object", lambda: app)()
    found: Runtime | None = app.__dict__.get("_redis_batches")
    return found or app.__dict__.setdefault("_redis_batches", Runtime(app))
