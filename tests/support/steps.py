"""The steps that most tests take, in the words of the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.outcomes import Idle, Outcome, Verb
from redis_batches.core.requests import Group, Outgoing, Pushed
from redis_batches.core.triggers import Trigger
from tests.support import raw
from tests.support.state import State

GROUP = Group.of({"queue": "clicks"})
OTHER = Group.of({"queue": "views"})
#: Three requests make a full batch; the oldest waits ten seconds for them.
TRIGGER = Trigger(3, 10_000)
INTERVAL_MS = TRIGGER.interval_ms
#: As in `redis_batches.core.settings.Settings`.
LEASE_MS = 30_000
WINDOW_MS = 120_000
REVOKED_WINDOW_MS = 10_800_000
#: As in `lua/lib`.
MIN_PAUSE_MS, MAX_PAUSE_MS = 1000, 600_000
MAX_BELLS = 16
SECOND, HOUR = 1000, 3_600_000


def limit(store: Store, **settings: Any) -> None:
    """Changes settings of a store."""
    store.settings = replace(store.settings, **settings)


def call(task_id: str, nonce: str = "", eta_ms: int | None = None, body: bytes = b"{}") -> Outgoing:
    """Returns a call; without a nonce its id was made for it."""
    return Outgoing(task_id, nonce, eta_ms, body)


def push(
    store: Store,
    *calls: str | Outgoing,
    group: Group = GROUP,
    trigger: Trigger = TRIGGER,
    caller: str = "",
) -> Pushed:
    """Pushes calls, or ids of new ones."""
    outgoing = [call(each) if isinstance(each, str) else each for each in calls]
    return store.push(group, trigger, outgoing, caller)


def push_many(store: Store, count: int, trigger: Trigger = TRIGGER) -> list[str]:
    """Pushes calls, all in the same millisecond; returns their ids."""
    ids = [f"{number:05}" for number in range(count)]
    for first in range(0, count, 500):
        push(store, *ids[first : first + 500], trigger=trigger)
    return ids


def ack_all(lease: Lease, *, well: bool = False) -> int:
    """Ends a batch whose requests were told, all but those that it gave back."""
    return lease.ack([request.id for request in lease.requests], ends=True, well=well)


def try_claim(store: Store, trigger: Trigger = TRIGGER, **options: Any) -> Lease | Idle:
    """Claims what is due."""
    group: Group = options.pop("group", GROUP)
    return store.claim(group.id, trigger, **options)


def claim(store: Store, trigger: Trigger = TRIGGER, **options: Any) -> Lease:
    """Claims a batch that is there."""
    lease = try_claim(store, trigger, **options)
    assert isinstance(lease, Lease), lease
    return lease


def push_and_claim(store: Store, *ids: str, trigger: Trigger = TRIGGER, **options: Any) -> Lease:
    """Lets a worker have a batch of new requests."""
    push(store, *ids, trigger=trigger)
    return claim(store, trigger, force=True, **options)


def ids_of(lease: Lease) -> list[str]:
    """Returns the ids of a batch, oldest first."""
    return [request.id for request in lease.requests]


def retry(*ids: str, delay_ms: int = 0, error: str = "") -> list[Outcome]:
    """Returns outcomes that let requests run again."""
    return [Outcome(task_id, Verb.RETRY, delay_ms, error) for task_id in ids]


def retry_batch(*ids: str) -> list[Outcome]:
    """Returns outcomes of requests whose whole batch failed."""
    return [Outcome(task_id, Verb.RETRY_BATCH) for task_id in ids]


def put_back(*ids: str, delay_ms: int = 0) -> list[Outcome]:
    """Returns outcomes as if the requests had not been claimed."""
    return [Outcome(task_id, Verb.PUT_BACK, delay_ms) for task_id in ids]


def dead(*ids: str, error: str = "") -> list[Outcome]:
    """Returns outcomes that give requests up."""
    return [Outcome(task_id, Verb.DEAD, error=error) for task_id in ids]


def bury(store: Store, *ids: str) -> None:
    """Makes dead letters of new requests."""
    lease = push_and_claim(store, *ids, trigger=Trigger(max(len(ids), 1), INTERVAL_MS))
    lease.release(dead(*ids))
    lease.ack()


def read(store: Store) -> State:
    """Returns all that Redis holds."""
    groups = {GROUP.id, OTHER.id, *store.groups()}
    return State.read(raw.client(store), raw.keys(store), sorted(groups))


def waiting(store: Store, group: Group = GROUP) -> list[str]:
    """Returns the ids that wait, in their order."""
    return [entry.id for entry in read(store).pending[group.id]]


def place(store: Store, task_id: str) -> str:
    """Returns where a request is."""
    (found,) = read(store).places(task_id)
    return found.partition(" ")[0]


def attention(store: Store, group: Group = GROUP) -> int:
    """Returns when a sweep will look at a group, in ms."""
    return read(store).groups[group.id]
