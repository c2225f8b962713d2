"""At `maxmemory` nothing new is accepted, and all that was accepted can still be finished."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.errors import OutOfMemory
from redis_batches.core.outcomes import Idle
from redis_batches.core.requests import Status
from redis_batches.core.settings import Settings
from redis_batches.testing.clock import Clock
from redis_batches.testing.server import EmbeddedServer
from redis_batches.upkeep.sweeper import Served, Sweeper
from tests.support import raw, steps


@pytest.fixture(scope="module")
def small_server() -> Iterator[EmbeddedServer]:
    """A server that evicts nothing."""
    with EmbeddedServer(config={"maxmemory-policy": "noeviction"}) as started:
        yield started


class Memory:
    """The memory of a server."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def is_full(self) -> None:
        """Lets the server refuse whatever needs more: it needs several times this for itself."""
        self._client.config_set("maxmemory", "100kb")

    def is_free(self) -> None:
        """Lifts the limit."""
        self._client.config_set("maxmemory", "0")


@pytest.fixture
def store(small_server: EmbeddedServer, clock: Clock) -> Iterator[Store]:
    """A task on that server."""
    with redis.Redis.from_url(small_server.url) as client:
        client.config_set("maxmemory", "0")
        client.flushall()
        yield Store(client, Settings(namespace="small"), "shop.click", clock)


@pytest.fixture
def memory(store: Store) -> Memory:
    """Its server's memory."""
    return Memory(raw.client(store))


@pytest.fixture
def lease(store: Store) -> Lease:
    """A batch of a, b and c; d, e and f wait."""
    steps.push(store, *"abcdef")
    return steps.claim(store, bell="bell")


def test_a_push_is_refused_whole(store: Store, memory: Memory) -> None:
    """Its error says what it is, and nothing is stored of it."""
    steps.push(store, "a")
    memory.is_full()
    before = steps.read(store)

    with pytest.raises(OutOfMemory, match="push"):
        steps.push(store, "b", "c")
    assert steps.read(store) == before


def test_a_retry_from_inside_a_batch_is_refused_whole(
    store: Store, lease: Lease, memory: Memory
) -> None:
    """The batch still owns its request, and settles it in another way."""
    memory.is_full()
    before = steps.read(store)

    with pytest.raises(OutOfMemory, match="push"):
        steps.push(store, steps.call("a", "again"), caller=lease.token)
    assert steps.read(store) == before


def test_a_call_that_is_stored_already_is_told_so(store: Store, memory: Memory) -> None:
    """It is not refused: its first reply was lost."""
    steps.push(store, *"abc")
    memory.is_full()

    assert set(steps.push(store, *"abc").statuses) == {Status.AGAIN}


def test_a_batch_can_be_claimed(store: Store, lease: Lease, memory: Memory) -> None:
    """Also if the reply was lost."""
    memory.is_full()

    assert steps.ids_of(steps.claim(store, token="token", bell="other")) == ["d", "e", "f"]
    assert steps.ids_of(steps.claim(store, token="token", bell="other")) == ["d", "e", "f"]


def test_a_claim_in_vain_is_no_error(store: Store, lease: Lease, memory: Memory) -> None:
    """Whether nothing is due, or nothing waits."""
    steps.push(store, "g")
    memory.is_full()
    steps.claim(store)

    assert steps.try_claim(store, bell="third") == Idle("not_due", steps.INTERVAL_MS)
    steps.claim(store, force=True)
    assert steps.try_claim(store, bell="fourth") == Idle("empty")


@pytest.mark.parametrize("times", [1, 2])
def test_a_batch_can_be_acked(store: Store, lease: Lease, memory: Memory, times: int) -> None:
    """In parts and to its end, once or twice."""
    memory.is_full()
    for _ in range(times):
        lease.ack(["a"])
    for _ in range(times):
        steps.ack_all(lease)

    assert sorted(steps.read(store).items) == ["d", "e", "f"]


def test_a_lease_can_be_extended(store: Store, lease: Lease, memory: Memory, clock: Clock) -> None:
    """Else every batch would run again."""
    memory.is_full()
    clock.advance(steps.SECOND)

    assert lease.extend()
    assert steps.read(store).leases == {lease.token: clock.now_ms + steps.LEASE_MS}


@pytest.mark.parametrize("times", [1, 2])
def test_requests_can_be_given_back(store: Store, lease: Lease, memory: Memory, times: int) -> None:
    """In every way, once or twice."""
    memory.is_full()
    for _ in range(times):
        lease.release(
            [
                *steps.retry("a", delay_ms=steps.SECOND, error="x"),
                *steps.put_back("b"),
                *steps.dead("c", error="x"),
            ]
        )

    state = steps.read(store)
    assert [state.places(one)[0].split()[0] for one in "abc"] == ["delayed", "pending", "dead"]


def test_a_batch_can_be_taken_back(
    store: Store, lease: Lease, memory: Memory, clock: Clock
) -> None:
    """From a worker that died of the same shortage."""
    clock.advance(steps.LEASE_MS)
    memory.is_full()
    for _ in range(2):
        store.reclaim(lease.token, steps.GROUP.id, steps.TRIGGER)

    assert steps.waiting(store) == list("abcdef")


@pytest.mark.parametrize("times", [1, 2])
def test_requests_can_be_cancelled(store: Store, lease: Lease, memory: Memory, times: int) -> None:
    """Those that wait, and those that run, once or twice."""
    memory.is_full()
    for _ in range(times):
        cancelled, _ = store.cancel(steps.GROUP.id, ["a", "d"], steps.TRIGGER, token="token")
    assert cancelled is not None
    steps.ack_all(cancelled)

    assert steps.waiting(store) == ["e", "f"]
    assert steps.claim(store, force=True).requests


@pytest.mark.parametrize("times", [1, 2])
def test_what_was_delayed_can_be_promoted(
    store: Store, memory: Memory, clock: Clock, times: int
) -> None:
    """Once or twice."""
    steps.push(store, steps.call("a", eta_ms=clock.now_ms + steps.SECOND))
    clock.advance(steps.SECOND)
    memory.is_full()
    for _ in range(times):
        store.promote(steps.GROUP.id, ["a"], steps.TRIGGER)

    assert steps.waiting(store) == ["a"]


@pytest.mark.parametrize("name", ["", "anne"], ids=["beat", "worker"])
def test_a_sweeper_goes_on(
    store: Store, lease: Lease, memory: Memory, clock: Clock, name: str
) -> None:
    """Else nobody would be woken, and the memory would stay full."""
    steps.push(store, steps.call("g", eta_ms=clock.now_ms + steps.SECOND), "h")
    clock.advance(steps.LEASE_MS)
    memory.is_full()
    rung = []
    served = [Served(store, steps.TRIGGER)]
    Sweeper(lambda: served, lambda _, bells: rung.append(bells), 1.0, name).tick()

    assert sum(bells.count for bells in rung) > 0
    assert steps.waiting(store) == [*"abcdef", "h", "g"]


def test_the_backlog_drains(store: Store, lease: Lease, memory: Memory) -> None:
    """Then there is room again."""
    memory.is_full()
    steps.ack_all(lease)
    steps.ack_all(steps.claim(store))
    assert steps.read(store).items == {}
    memory.is_free()

    assert steps.push(store, "g").statuses == (Status.NEW,)
