"""The stores of one process: one per task for each way to wait for Redis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from redis_batches.buffer.registry import Registry
from redis_batches.buffer.store import Store
from redis_batches.core.outage import Breaker
from redis_batches.core.settings import Settings
from redis_batches.driver.connection import connect
from redis_batches.driver.executor import Client
from redis_batches.driver.patience import guard
from redis_batches.driver.preflight import check_server
from redis_batches.driver.server_errors import translated

#: Seconds for which an event loop waits for Redis, at most.
MOMENT = 1.0
#: The ways to wait: for as long as the settings say, not at all, and for a moment.
_PATIENT, _SINGLE_TRY, _LOOP, _SWEEPER = "patient", "single try", "loop", "sweeper"


class Stores:
    """What a process asks Redis with; after a fork it needs another one.

    Threads that come first at once get the same store, and share its connections.

    Args:
        settings: The app's settings.
        address: Returns the URL of the server, and what else belongs to its connections.
        misconfigured: Makes the error for an address that says what no connection understands.
    """

    def __init__(
        self,
        settings: Settings,
        address: Callable[[], tuple[str, Mapping[str, Any]]],
        misconfigured: Callable[[str], Exception] = ValueError,
    ) -> None:
        self._settings = settings
        self._address = address
        self._misconfigured = misconfigured
        self._clients: dict[str, Client] = {}
        self._kept: dict[tuple[str, str], Store] = {}
        self._registry: Registry | None = None
        slow = min(settings.timeout, MOMENT) / 2
        loop = Breaker("Redis", slow=slow, pause=5.0, longest=30.0)
        sweeper = Breaker("Redis", slow=slow, pause=1.0, longest=1.0, followers=(loop,))
        self._breakers = {_LOOP: loop, _SWEEPER: sweeper}
        # What keeps an event loop waiting waits for no replica.
        self._guarded_settings = replace(settings, wait_replicas=0)

    def of(self, task: str) -> Store:
        """Returns the store of a task, which goes on as the settings say."""
        return self._store(_PATIENT, task)

    def single_try(self, task: str) -> Store:
        """Returns one that sends each command once: its caller decides what happens then."""
        return self._store(_SINGLE_TRY, task)

    def of_event_loop(self, task: str) -> Store:
        """Returns one that rather gives up than keeps a worker's event loop waiting."""
        return self._store(_LOOP, task)

    def of_sweeper(self, task: str) -> Store:
        """Returns one for who sweeps beside an event loop: it soon tries again."""
        return self._store(_SWEEPER, task)

    def of_one_thread(self) -> Callable[[str], Store]:
        """Returns what makes a task's store on a connection of the thread that calls it first."""
        clients: list[Client] = []
        kept: dict[str, Store] = {}

        def store_of(task: str) -> Store:
            if task not in kept:
                clients[:] = clients or [self._connect(_PATIENT)]
                kept[task] = Store(clients[0], self._settings, task)
            return kept[task]

        return store_of

    @property
    def registry(self) -> Registry:
        """The tasks of this namespace that workers serve."""
        if self._registry is None:
            self._registry = Registry(self._client(_SWEEPER), self._settings.namespace)
        return self._registry

    def check_server(self) -> None:
        """Looks at the server in the event loop of a worker; see `driver.preflight`."""
        check_server(self._client(_LOOP))

    def _store(self, way: str, task: str) -> Store:
        found = self._kept.get((way, task))
        if found is None:
            settings = self._guarded_settings if way in self._breakers else self._settings
            made = Store(self._client(way), settings, task)
            found = self._kept.setdefault((way, task), made)
        return found

    def _client(self, way: str) -> Client:
        found = self._clients.get(way)
        if found is None:
            found = self._clients.setdefault(way, self._connect(way))
        return found

    def _connect(self, way: str) -> Client:
        settings, breaker = self._settings, self._breakers.get(way)
        if breaker is None:
            is_patient = way == _PATIENT
            retries = settings.retries if is_patient else 0
            return self._open(settings.timeout, retries, settings.deadline, patient=is_patient)
        # It sends once, waits for a moment, and fails at once in an outage.
        seconds = min(settings.timeout, MOMENT)
        with breaker.attempt():
            client = self._open(seconds, 0, seconds, patient=False)
        guard(client, breaker)
        return client

    def _open(self, timeout: float, retries: int, deadline: float, *, patient: bool) -> Client:
        url, options = self._address()
        try:
            with translated("connect"):
                return connect(url, timeout, retries, options, deadline, patient)
        except ValueError as exc:
            raise self._misconfigured(str(exc)) from exc
