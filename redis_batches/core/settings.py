"""Options of a batch task and settings of an app, validated once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from redis_batches.core.errors import InvalidTaskId, OptionError, UnknownOption
from redis_batches.core.triggers import Trigger

MAX_FLUSH_EVERY = 10_000
MAX_FLUSH_INTERVAL = 7 * 24 * 3600
#: Below this many ms a sweep could not keep up: whatever waits is due at once.
MIN_INTERVAL_MS = 20
#: A lease outlives this many missed heartbeats.
HEARTBEATS_PER_LEASE = 3
MIN_LEASE = 0.3
#: How long and how many finished calls are remembered, so that one sent twice runs once.
DEDUPLICATION_WINDOW_MS = 120_000
DEDUPLICATION_CALLS = 100_000
#: How long and how many revoked ids are remembered: as Celery's workers do by default.
REVOKED_WINDOW_MS = 10_800_000
REVOKED_IDS = 50_000
#: The longest delay of a request that is put back; a retry has any.
PUT_BACK_DELAY_MS = 600_000

#: Settings that are numbers of something, 0 or more.
_COUNTED = ("max_payload", "max_pending", "max_dead", "flush_bytes", "retries", "wait_replicas")
TASK_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def check_task_id(task_id: object) -> str:
    """Returns a task id that Redis can hold, or raises InvalidTaskId."""
    if isinstance(task_id, str) and TASK_ID.fullmatch(task_id):
        return task_id
    raise InvalidTaskId(task_id)


def check_name(what: str, name: object) -> str:
    """Returns a name without control characters, or raises OptionError."""
    if isinstance(name, str) and name and name.isprintable():
        return name
    raise OptionError(what, name, "a text that is not empty and has no control characters")


def make_trigger(flush_every: object, flush_interval: object) -> Trigger:
    """Returns the trigger of a task's two options.

    Args:
        flush_every: Requests, 1 to 10,000.
        flush_interval: Seconds, 0 to 7 days; below 20 ms whatever waits is due at once.

    Raises:
        OptionError: One of them is not allowed.
    """
    try:
        return _make_trigger(flush_every, flush_interval)
    except TypeError:
        # An argument that cannot be hashed: it is refused like any other.
        return _make_trigger.__wrapped__(flush_every, flush_interval)


@lru_cache(maxsize=1024, typed=True)
def _make_trigger(flush_every: object, flush_interval: object) -> Trigger:
    if type(flush_every) is not int or not 1 <= flush_every <= MAX_FLUSH_EVERY:
        raise OptionError("flush_every", flush_every, f"an int from 1 to {MAX_FLUSH_EVERY:,}")
    seconds = _seconds("flush_interval", flush_interval, MAX_FLUSH_INTERVAL, zero=True)
    interval_ms = round(seconds * 1000)
    return Trigger(flush_every, interval_ms if interval_ms >= MIN_INTERVAL_MS else 0)


def check_trigger(trigger: Trigger) -> Trigger:
    """Returns a trigger that a task may have, or raises ValueError."""
    ranges = (
        (trigger.flush_every, 1, MAX_FLUSH_EVERY),
        (trigger.interval_ms, 0, MAX_FLUSH_INTERVAL * 1000),
    )
    for value, least, most in ranges:
        if not least <= value <= most:
            raise ValueError(f"{value} is not an int of {least} to {most}")
    return trigger


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an app, each under its Celery name `redis_batches_<field>`.

    Attributes:
        url: The server in which requests wait; None: the broker or result backend, if it is Redis.
        namespace: Keeps apps that share a server apart.
        lease: Seconds after which the batch of a silent worker is taken back.
        sweep_interval: Seconds between two looks of a sweeper, at most.
        worker_sweeper: Whether each worker sweeps, too.
        sweep_queue: The queue of beat's sweep task; None: that of the first batch task.
        max_payload: Bytes of one encoded call.
        max_pending: Requests of one task that may wait.
        max_dead: Dead letters of one task; then the oldest goes.
        max_put_backs: How often a run may give a request back without an outcome; then it fails.
        flush_bytes: Bytes of one batch; a larger request goes alone.
        deadline: Seconds that Redis may take for one call, with all that belongs to it.
        timeout: Seconds for connecting, and for each reply of Redis.
        retries: How often a lost command is sent again.
        wait_replicas: Replicas that must have a call before its caller goes on.
    """

    url: str | None = None
    namespace: str = "celery"
    lease: float = 30.0
    sweep_interval: float = 1.0
    worker_sweeper: bool = True
    sweep_queue: str | None = None
    max_payload: int = 1_000_000
    max_pending: int = 1_000_000
    max_dead: int = 10_000
    max_put_backs: int = 100
    flush_bytes: int = 16_000_000
    deadline: float = 10.0
    timeout: float = 2.0
    retries: int = 3
    wait_replicas: int = 0

    def __post_init__(self) -> None:
        """Raises OptionError for a value that is not allowed."""
        check_name("redis_batches_namespace", self.namespace)
        for name in ("lease", "sweep_interval", "deadline", "timeout"):
            _seconds(f"redis_batches_{name}", getattr(self, name), 24 * 3600)
        if type(self.max_put_backs) is not int or self.max_put_backs < 1:
            raise OptionError("redis_batches_max_put_backs", self.max_put_backs, "an int above 0")
        for name in _COUNTED:
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise OptionError(f"redis_batches_{name}", value, "an int that is not negative")
        if self.lease < MIN_LEASE:
            allowed = f"at least {MIN_LEASE} s, {HEARTBEATS_PER_LEASE} heartbeats"
            raise OptionError("redis_batches_lease", self.lease, allowed)

    @classmethod
    def read(cls, conf: Mapping[str, Any], namespace: str | None = None) -> Settings:
        """Returns the settings of a Celery configuration.

        Args:
            conf: The configuration.
            namespace: What its names begin with, as of `config_from_object`.

        Raises:
            OptionError: A value is not allowed, or a name that begins as these is none of them.
        """
        known = {f"redis_batches_{field.name}" for field in fields(cls)}
        prefix = f"{namespace}_".lower() if namespace else ""
        for key in conf:
            name = str(key).lower().removeprefix(prefix)
            if name.startswith("redis_batches_") and name not in known:
                raise UnknownOption(name, next(iter(get_close_matches(name, known, 1)), None))
        found = {field.name: conf.get(f"redis_batches_{field.name}") for field in fields(cls)}
        return cls(**{name: value for name, value in found.items() if value is not None})


def _seconds(what: str, value: object, most: float, *, zero: bool = False) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and 0 <= value <= most and (zero or value > 0):  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    low = "0" if zero else "above 0"
    raise OptionError(what, value, f"a number of seconds, {low} to {most:,}")
