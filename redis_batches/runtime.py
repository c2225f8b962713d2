"""What one Celery app shares between its batch tasks: settings, the connection, doorbells."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import redis
from celery.exceptions import ImproperlyConfigured

from redis_batches.committer import Committer
from redis_batches.config import HEARTBEATS_PER_LEASE, Settings
from redis_batches.connection import SCHEMES, connect, is_redis_url, scheme_of
from redis_batches.errors import OptionError
from redis_batches.heartbeat import Heartbeat
from redis_batches.refusal import translated
from redis_batches.registry import Registry
from redis_batches.store import Store


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
        self._sweeping_client: redis.Redis | None = None
        self._single_try_client: redis.Redis | None = None
        self._heartbeat: Heartbeat | None = None
        self._stores: dict[str, Store] = {}
        self._committers: dict[str, Committer] = {}

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
    def client(self) -> redis.Redis:
        """This process's own connection."""
        self._after_fork()
        if self._client is None:
            self._client = self._connect(self.settings.timeout, self.settings.retries)
        return self._client

    @property
    def heartbeat(self) -> Heartbeat:
        """Keeps the leases of this process."""
        self._after_fork()
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self.settings.lease / HEARTBEATS_PER_LEASE)
        return self._heartbeat

    def _after_fork(self) -> None:
        """Drops what a fork inherited: sockets that are another's, threads that do not run."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._client, self._sweeping_client, self._single_try_client = None, None, None
            self._heartbeat, self._stores, self._committers = None, {}, {}

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
        # Two threads may come first at once: both take the one that is kept.
        return found or self._committers.setdefault(task, Committer(self.store(task).push))

    def sweeping_store(self, task: str) -> Store:
        """Returns a store that rather gives up than keeps a worker's event loop waiting."""
        self._after_fork()
        if self._sweeping_client is None:
            self._sweeping_client = self._connect(min(self.settings.timeout, 1.0), 0)
        return Store(self._sweeping_client, self.settings, task, patience=0)

    def single_try_store(self, task: str) -> Store:
        """Returns a store that sends each command once: its caller decides what happens then."""
        self._after_fork()
        if self._single_try_client is None:
            self._single_try_client = self._connect(self.settings.timeout, 0)
        return Store(self._single_try_client, self.settings, task, patience=0)

    @property
    def registry(self) -> Registry:
        """The tasks of this namespace that workers serve."""
        return Registry(self.client, self.settings.namespace)

    def _connect(self, timeout: float, retries: int) -> redis.Redis:
        url, conf = self._url(), self.app.conf
        options: dict[str, Any] = {
            **(conf.result_backend_transport_options or {}),
            **(conf.broker_transport_options or {}),
        }
        if scheme_of(url) == "sentinel" and "master_name" not in options:
            raise ImproperlyConfigured(
                "set broker_transport_options = {'master_name': ...}: the sentinels at "
                "redis_batches_url are asked for that server"
            )
        with translated("connect"):
            return connect(url, timeout, retries, options)

    def _url(self) -> str:
        conf = self.app.conf
        if self.settings.url:
            if is_redis_url(self.settings.url):
                return self.settings.url
            raise ImproperlyConfigured(
                f"redis_batches_url has to start with one of {', '.join(SCHEMES)} (then ://)"
            )
        for setting in conf.broker_write_url, conf.result_backend:
            for candidate in _urls(setting):
                if is_redis_url(candidate):
                    return candidate
        raise ImproperlyConfigured(
            "neither the broker nor the result backend is Redis: set redis_batches_url to the "
            "redis:// URL of the server in which requests shall wait"
        )


def _urls(setting: Any) -> Iterable[str]:
    if isinstance(setting, str):
        # Sentinels are listed, and asked together; of several brokers, the first counts.
        return [setting] if scheme_of(setting) == "sentinel" else setting.split(";")
    return [url for url in setting or () if isinstance(url, str)]


def runtime_of(app: Any) -> Runtime:
    """Returns the runtime of an app, which keeps it."""
    app = getattr(app, "_get_current_object", lambda: app)()
    found: Runtime | None = app.__dict__.get("_redis_batches")
    return found or app.__dict__.setdefault("_redis_batches", Runtime(app))
