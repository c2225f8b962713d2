"""sweep: what is overdue is found, whoever was lost, and whatever the clock did."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import pytest

from redis_batches.buffer.store import Store
from redis_batches.core.errors import StoreError, Unanswered
from redis_batches.core.outcomes import Swept
from redis_batches.core.requests import Group
from redis_batches.core.triggers import Bells, Trigger
from redis_batches.testing.clock import Clock
from redis_batches.upkeep.sweeper import Served, Sweeper
from tests.support import raw, steps

pytestmark = pytest.mark.usefixtures("sound")

#: As in `redis_batches.core.settings`.
PUT_BACK_DELAY_MS = 600_000
WEEK_MS = 7 * 24 * steps.HOUR


def sweep(store: Store, **options: object) -> Swept:
    """Sweeps, whoever leads."""
    swept = store.sweep(steps.TRIGGER, **options)  # type: ignore[arg-type]
    assert swept is not None
    return swept


# -- What is due


def test_nothing_is_overdue(store: Store) -> None:
    """Nothing is named, and nothing more is expected."""
    assert sweep(store) == Swept(None)


def test_a_batch_whose_interval_is_over_is_rung_for(store: Store, clock: Clock) -> None:
    """Once, where its callers said."""
    steps.push(store, "a")
    clock.advance(steps.INTERVAL_MS - 1)
    assert sweep(store) == Swept(1)
    clock.advance(1)
    assert sweep(store).bells == (Bells(steps.GROUP.id, steps.GROUP.route, 1, clock.now_ms),)
    assert sweep(store).bells == ()


def test_every_group_is_rung_for(store: Store, clock: Clock) -> None:
    """Each by its own route."""
    steps.push(store, "a")
    steps.push(store, "b", group=steps.OTHER)
    clock.advance(steps.INTERVAL_MS)

    assert {(bells.group, bells.route) for bells in sweep(store).bells} == {
        (steps.GROUP.id, steps.GROUP.route),
        (steps.OTHER.id, steps.OTHER.route),
    }


def test_a_lost_doorbell_is_rung_again(store: Store, clock: Clock) -> None:
    """After the pause; nobody called the task meanwhile."""
    steps.push(store, *"abc")
    clock.advance(steps.MIN_PAUSE_MS - 1)
    assert sweep(store).bells == ()
    clock.advance(1)
    assert len(sweep(store).bells) == 1


def test_the_pause_doubles_while_nobody_answers(store: Store, clock: Clock) -> None:
    """Up to ten minutes: a day without workers costs few messages."""
    steps.push(store, *"abc")
    rung_at = []
    for _ in range(3600):
        clock.advance(steps.SECOND)
        if sweep(store).bells:
            rung_at.append(clock.now_ms)

    pauses = [later - earlier for earlier, later in pairwise(rung_at)]
    assert pauses[:3] == [2 * steps.SECOND, 4 * steps.SECOND, 8 * steps.SECOND]
    assert set(pauses[9:]) == {steps.MAX_PAUSE_MS}


def test_a_long_pause_is_not_taken_for_a_clock_that_went_back(store: Store, clock: Clock) -> None:
    """No sweep looks at its group before it is over."""
    steps.push(store, *"abc")
    while steps.read(store).bell(steps.GROUP.id)[2] < 2 * steps.INTERVAL_MS:
        clock.advance(steps.SECOND)
        sweep(store)
    sweep(store)

    _, rung_ms, pause_ms = steps.read(store).bell(steps.GROUP.id)
    assert steps.attention(store) == rung_ms + pause_ms


def test_an_answer_ends_the_pause(store: Store, clock: Clock) -> None:
    """The next doorbell is waited for as long as this one took."""
    steps.push(store, *"abcdef")
    for _ in range(600):
        clock.advance(steps.SECOND)
        sweep(store)
    steps.claim(store, bell="bell", rung_ms=clock.now_ms - 100)
    clock.advance(steps.MIN_PAUSE_MS)

    assert len(sweep(store).bells) == 1


def test_a_doorbell_that_is_out_is_not_rung_again(store: Store, clock: Clock) -> None:
    """Though the interval is over."""
    steps.push(store, *"abc")
    clock.advance(steps.MIN_PAUSE_MS)
    sweep(store)
    clock.advance(steps.MIN_PAUSE_MS)

    assert sweep(store).bells == ()
    assert steps.attention(store) == clock.now_ms + steps.MIN_PAUSE_MS


def test_an_expired_lease_is_named(store: Store, clock: Clock) -> None:
    """With its group; it is taken back by another script."""
    lease = steps.push_and_claim(store, "a")
    clock.advance(steps.LEASE_MS - 1)
    assert sweep(store).expired == ()
    clock.advance(1)
    assert sweep(store).expired == ((lease.token, steps.GROUP.id),)
    assert steps.place(store, "a") == "owned"


def test_a_request_whose_delay_is_over_is_named(store: Store, clock: Clock) -> None:
    """Whether it is a retry's or the caller's."""
    steps.push(store, steps.call("a", eta_ms=clock.now_ms + steps.SECOND), "b")
    steps.claim(store, force=True).release(steps.retry("b", delay_ms=steps.SECOND))
    steps.push(store, steps.call("c", eta_ms=clock.now_ms + steps.SECOND), group=steps.OTHER)
    clock.advance(steps.SECOND - 1)
    assert sweep(store).ready == ()
    clock.advance(1)
    assert dict(sweep(store).ready) == {steps.GROUP.id: ("b", "a"), steps.OTHER.id: ("c",)}


@pytest.mark.parametrize(
    ("arrange", "wait_ms"),
    [
        (lambda store, now: steps.push(store, "a"), steps.INTERVAL_MS),
        (lambda store, now: steps.push(store, *"abc"), steps.MIN_PAUSE_MS),
        (lambda store, now: steps.push_and_claim(store, "a"), steps.LEASE_MS),
        (lambda store, now: steps.push(store, steps.call("a", eta_ms=now + 7)), 7),
        (
            lambda store, now: steps.push_and_claim(store, "a").release(
                steps.retry("a", delay_ms=7)
            ),
            7,
        ),
    ],
    ids=["interval", "doorbell", "lease", "eta", "retry"],
)
def test_a_sweep_says_when_something_else_will_be_due(
    store: Store, clock: Clock, arrange: Callable[[Store, int], object], wait_ms: int
) -> None:
    """To the millisecond: so intervals are exact."""
    arrange(store, clock.now_ms)

    assert sweep(store).wait_ms == wait_ms


def test_a_sweep_is_bounded(store: Store, clock: Clock) -> None:
    """It names so many of each kind, and says that there is more."""
    for number in range(5):
        steps.push(store, str(number), group=Group.of({"queue": str(number)}))
    clock.advance(steps.INTERVAL_MS)

    assert len(sweep(store, limit=3).bells) == 3
    assert sweep(store, limit=3).wait_ms != 0
    assert len(steps.read(store).bells) == 5


def test_a_sweep_forgets_finished_calls(store: Store, clock: Clock) -> None:
    """After the window."""
    steps.ack_all(steps.push_and_claim(store, "a"))
    clock.advance(steps.WINDOW_MS - 1)
    sweep(store)
    assert "a" in steps.read(store).done
    clock.advance(1)
    sweep(store)
    assert steps.read(store).done == {}


# -- Who sweeps


def test_one_sweeper_leads(store: Store, clock: Clock) -> None:
    """The others stand by while its last sweep is fresh."""
    assert store.sweep(steps.TRIGGER, sweeper="anne", fresh_ms=3000)
    clock.advance(2999)
    assert store.sweep(steps.TRIGGER, sweeper="bert", fresh_ms=3000) is None
    assert store.sweep(steps.TRIGGER, sweeper="anne", fresh_ms=3000)


def test_another_sweeper_leads_when_the_first_is_gone(store: Store, clock: Clock) -> None:
    """Then the first one, if it comes back, stands by."""
    store.sweep(steps.TRIGGER, sweeper="anne", fresh_ms=3000)
    clock.advance(3000)

    assert store.sweep(steps.TRIGGER, sweeper="bert", fresh_ms=3000)
    assert store.sweep(steps.TRIGGER, sweeper="anne", fresh_ms=3000) is None


def test_a_sweeper_without_a_name_always_sweeps(store: Store) -> None:
    """It does not lead: beat's sweeps are rare."""
    store.sweep(steps.TRIGGER, sweeper="anne", fresh_ms=3000)

    assert sweep(store)
    assert store.sweep(steps.TRIGGER, sweeper="bert", fresh_ms=3000) is None
    assert store.sweep(steps.TRIGGER, sweeper="anne", fresh_ms=3000)


def test_a_leader_of_a_time_to_come_does_not_lead(store: Store, clock: Clock) -> None:
    """The clock went back: its last sweep would be fresh for hours."""
    store.sweep(steps.TRIGGER, sweeper="anne", fresh_ms=3000)
    clock.advance(-steps.HOUR)

    assert store.sweep(steps.TRIGGER, sweeper="bert", fresh_ms=3000)


def test_a_worker_that_starts_rings_again(store: Store, clock: Clock) -> None:
    """Though others lead, and nobody answered for hours: the pause starts anew."""
    steps.push(store, *"abc")
    for _ in range(20):
        clock.advance(steps.MAX_PAUSE_MS)
        store.sweep(steps.TRIGGER, sweeper="anne", fresh_ms=3000)
    clock.advance(1)

    swept = store.sweep(steps.TRIGGER, sweeper="bert", fresh_ms=3000, ring_again=True)
    assert swept is not None
    assert len(swept.bells) == 1
    assert steps.read(store).bell(steps.GROUP.id)[2] == 2 * steps.MIN_PAUSE_MS
    assert store.sweep(steps.TRIGGER, sweeper="bert", fresh_ms=3000) is None


def test_a_worker_that_starts_does_not_ring_for_what_is_not_due(store: Store) -> None:
    """Nobody was rung for it."""
    steps.push(store, "a")

    assert sweep(store, ring_again=True).bells == ()


# -- The clock went back


def test_an_interval_that_began_in_the_future_is_not_waited_for(store: Store, clock: Clock) -> None:
    """No longer than the interval."""
    steps.push(store, "a")
    clock.advance(-5 * steps.HOUR)

    assert sweep(store) == Swept(steps.INTERVAL_MS)
    clock.advance(steps.INTERVAL_MS)
    assert len(sweep(store).bells) == 1


def test_a_lease_that_began_in_the_future_expires(store: Store, clock: Clock) -> None:
    """After the lease."""
    lease = steps.push_and_claim(store, "a")
    clock.advance(-5 * steps.HOUR)

    assert sweep(store) == Swept(steps.LEASE_MS)
    clock.advance(steps.LEASE_MS)
    assert sweep(store).expired == ((lease.token, steps.GROUP.id),)


def test_a_retry_is_not_delayed_for_longer_than_it_said(store: Store, clock: Clock) -> None:
    """By a clock that was wrong by months."""
    lease = steps.push_and_claim(store, "a")
    lease.release(steps.retry("a", delay_ms=steps.SECOND))
    steps.ack_all(lease)
    clock.advance(-10 * WEEK_MS)

    assert sweep(store) == Swept(steps.SECOND)


@pytest.mark.parametrize("delay_ms", [steps.SECOND, 10 * WEEK_MS])
def test_what_is_put_back_is_not_delayed_for_longer_than_any(
    store: Store, clock: Clock, delay_ms: int
) -> None:
    """It has no record of its own: only a retry has a longer delay than ten minutes."""
    lease = steps.push_and_claim(store, "a")
    lease.release(steps.put_back("a", delay_ms=delay_ms))
    lease.ack(ends=True)
    clock.advance(-10 * WEEK_MS)

    assert sweep(store) == Swept(PUT_BACK_DELAY_MS)


def test_an_eta_is_a_time_of_the_clock(store: Store, clock: Clock) -> None:
    """It is waited for, however far away it is."""
    steps.push(store, steps.call("a", eta_ms=clock.now_ms + steps.SECOND))
    clock.advance(-10 * WEEK_MS)

    assert sweep(store) == Swept(10 * WEEK_MS + steps.SECOND)


def test_a_doorbell_that_was_rung_in_the_future_is_rung_again(store: Store, clock: Clock) -> None:
    """It is not waited for until then, and not for another pause at every sweep."""
    steps.push(store, *"abc")
    clock.advance(-5 * steps.HOUR)
    sweep(store)
    clock.advance(steps.INTERVAL_MS)

    assert len(sweep(store).bells) == 1


def test_a_doorbell_of_the_future_is_made_good_by_the_next_call(store: Store, clock: Clock) -> None:
    """Calls that come all the time do not put it off."""
    steps.push(store, *"abc")
    clock.advance(-5 * steps.HOUR)

    assert steps.push(store, "d").bells.count > 0


def test_a_sound_record_does_not_hide_another(store: Store, clock: Clock) -> None:
    """A group that may wait for ten minutes comes before one that may not."""
    steps.push(store, *"abc")
    while steps.read(store).bell(steps.GROUP.id)[2] < steps.MAX_PAUSE_MS:
        clock.advance(steps.SECOND)
        sweep(store)
    steps.push(store, "d", group=steps.OTHER)
    clock.advance(-300 * steps.SECOND)
    raw.client(store).zadd(
        raw.key(store, "groups"), {steps.GROUP.id: clock.now_ms + steps.MAX_PAUSE_MS}
    )
    sweep(store)

    assert steps.attention(store, steps.OTHER) == clock.now_ms + steps.INTERVAL_MS


# -- The sweeper


class Belfry:
    """Doorbells that were rung."""

    def __init__(self) -> None:
        self.rung: list[Bells] = []

    def __call__(self, task: str, bells: Bells) -> None:
        """Notes doorbells."""
        if bells.count:
            self.rung.append(bells)


@pytest.fixture
def belfry() -> Belfry:
    """What a sweeper rings."""
    return Belfry()


def sweeper_of(belfry: Belfry, *stores: Store, name: str = "anne") -> Sweeper:
    """Returns a sweeper of tasks that ticks at least once a second."""
    served = [Served(store, steps.TRIGGER) for store in stores]
    return Sweeper(lambda: served, belfry, 1.0, name)


def test_a_tick_takes_expired_batches_back(store: Store, clock: Clock, belfry: Belfry) -> None:
    """And rings for them at once."""
    steps.push_and_claim(store, "a")
    clock.advance(steps.LEASE_MS)
    sweeper_of(belfry, store).tick()

    assert steps.waiting(store) == ["a"]
    assert belfry.rung == [Bells(steps.GROUP.id, steps.GROUP.route, 1, 0)]


def test_a_tick_promotes_what_was_delayed(store: Store, clock: Clock, belfry: Belfry) -> None:
    """And rings if that fills a batch."""
    steps.push(
        store, *(steps.call(task_id, eta_ms=clock.now_ms + steps.SECOND) for task_id in "abc")
    )
    clock.advance(steps.SECOND)
    sweeper_of(belfry, store).tick()

    assert steps.waiting(store) == ["a", "b", "c"]
    assert belfry.rung == [Bells(steps.GROUP.id, steps.GROUP.route, 1, 0)]


def test_a_tick_drains_a_backlog_of_groups(store: Store, clock: Clock, belfry: Belfry) -> None:
    """A sweep names 500 of them."""
    for number in range(1100):
        steps.push(store, str(number), group=Group.of({"queue": str(number)}))
    clock.advance(steps.INTERVAL_MS)
    sweeper_of(belfry, store).tick()

    assert len({bells.group for bells in belfry.rung}) == 1100


def test_a_tick_says_when_the_next_is_wanted(store: Store, clock: Clock, belfry: Belfry) -> None:
    """When something will be due, or in a second."""
    sweeper = sweeper_of(belfry, store)
    assert sweeper.tick() == 1.0
    steps.push(store, "a")
    clock.advance(steps.INTERVAL_MS - 300)
    assert sweeper.tick() == pytest.approx(0.301)


def test_a_sweeper_ticks_once_per_shortest_interval(store: Store, belfry: Belfry) -> None:
    """What it does not see now is armed later, and due an interval after that."""
    served = [Served(store, Trigger(3, 50))]

    assert Sweeper(lambda: served, belfry, 1.0, "anne").tick() == pytest.approx(0.05)


def test_a_sweeper_rings_again_once(store: Store, clock: Clock, belfry: Belfry) -> None:
    """At its first tick."""
    steps.push(store, *"abc")
    sweeper = sweeper_of(belfry, store)
    for _ in range(3):
        sweeper.tick()

    assert len(belfry.rung) == 1


def test_a_task_that_cannot_be_swept_does_not_stop_the_others(
    store: Store, clock: Clock, belfry: Belfry, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and tried again in a second."""
    broken = Store(raw.client(store), store.settings, "shop.broken", clock)
    raw.client(store).set(raw.key(broken, "groups"), "foreign")
    steps.push(store, *"abc")
    with caplog.at_level(logging.WARNING):
        wait = sweeper_of(belfry, broken, store).tick()

    assert len(belfry.rung) == 1
    assert wait == 1.0
    assert "cannot sweep shop.broken" in caplog.text


def test_what_could_not_be_rung_again_is_made_good(
    store: Store, clock: Clock, belfry: Belfry
) -> None:
    """At the next tick, though another worker leads."""
    steps.push(store, *"abc")
    for _ in range(20):
        clock.advance(steps.MAX_PAUSE_MS)
        sweep(store)
    store.sweep(steps.TRIGGER, sweeper="anne", fresh_ms=3000)
    claims = raw.key(store, "claims")
    raw.client(store).set(claims, "foreign")
    sweeper = sweeper_of(belfry, store, name="bert")
    sweeper.tick()
    raw.client(store).delete(claims)
    sweeper.tick()

    assert len(belfry.rung) == 1


def test_each_task_is_rung_again_for(store: Store, clock: Clock, belfry: Belfry) -> None:
    """One for which it failed, and one that came later, though another has been."""
    late = Store(raw.client(store), store.settings, "shop.late", clock)
    for each in store, late:
        steps.push(each, *"abc")
        for _ in range(20):
            clock.advance(steps.MAX_PAUSE_MS)
            sweep(each)
        each.sweep(steps.TRIGGER, sweeper="bert", fresh_ms=3000)
    fine = Store(raw.client(store), store.settings, "shop.fine", clock)
    served = [Served(fine, steps.TRIGGER), Served(store, steps.TRIGGER)]
    sweeper = Sweeper(lambda: served, belfry, 1.0, "anne")
    claims = raw.key(store, "claims")
    raw.client(store).set(claims, "foreign")
    sweeper.tick()
    raw.client(store).delete(claims)
    assert belfry.rung == []

    served.append(Served(late, steps.TRIGGER))
    sweeper.tick()
    sweeper.tick()
    assert len(belfry.rung) == 2


def test_a_batch_that_cannot_be_taken_back_keeps_no_other_waiting(
    store: Store, clock: Clock, belfry: Belfry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tick ends all the same, and the next one is not at once."""
    monkeypatch.setattr("redis_batches.upkeep.sweeper.SWEEP_LIMIT", 1)
    broken = steps.push_and_claim(store, "a")
    clock.advance(1)
    steps.push(store, "b", group=steps.OTHER)
    steps.claim(store, force=True, group=steps.OTHER)
    clock.advance(steps.LEASE_MS)
    raw.client(store).set(raw.key(store, "pending", steps.GROUP.id), "foreign")

    wait = sweeper_of(belfry, store).tick()

    assert store.waiting(steps.OTHER.id) == 1
    assert wait >= 0.02
    raw.client(store).delete(raw.key(store, "pending", steps.GROUP.id))
    assert steps.ack_all(broken) == 1


def test_a_sweep_of_a_foreign_key_is_an_error(store: Store) -> None:
    """It is not taken for empty."""
    raw.client(store).set(raw.key(store, "delayed"), "foreign")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        sweep(store)
    raw.client(store).delete(raw.key(store, "delayed"))


def test_a_batch_that_was_lost_runs_at_last(store: Store, clock: Clock, belfry: Belfry) -> None:
    """Every doorbell was lost, and every worker died."""
    steps.push(store, *"abc")
    sweeper = sweeper_of(belfry, store)
    for _ in range(4):
        clock.advance(steps.MAX_PAUSE_MS)
        sweeper.tick()
        steps.claim(store)

    clock.advance(steps.MAX_PAUSE_MS)
    sweeper.tick()
    assert steps.ids_of(steps.claim(store)) == ["a"]


def test_workers_that_start_one_after_another_do_not_flood_the_broker(
    store: Store, clock: Clock
) -> None:
    """Each rings once more; its doorbell does not pass for one that overtook the others."""
    rung = []
    for first in range(0, 1500, 100):
        bells = steps.push(store, *(f"id{number}" for number in range(first, first + 100))).bells
        rung += [bells.rung_ms] * bells.count
    for event in range(5):
        clock.advance(50)
        swept = store.sweep(steps.TRIGGER, sweeper=f"w{event}", fresh_ms=3000, ring_again=True)
        assert swept is not None
        rung += [bells.rung_ms for bells in swept.bells]
        for number in range(40):
            clock.advance(50)
            lease = steps.claim(store, bell=f"bell{event}-{number}", rung_ms=rung.pop(0))
            rung += [lease.bells.rung_ms] * lease.bells.count
            steps.ack_all(lease)

    assert len(rung) <= 16 + 5


def test_one_outage_is_one_line_of_the_log(
    store: Store, belfry: Belfry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of tasks and ticks; what is another task's own error is named, too."""

    def sweep(asked: Store, *_: object, **__: object) -> None:
        if asked.task == "wrong":
            raise StoreError("Redis refused to sweep: WRONGTYPE")
        raise Unanswered("Redis", 1)

    monkeypatch.setattr(Store, "sweep", sweep)
    stores = [Store(raw.client(store), store.settings, f"task-{number}") for number in range(30)]
    sweeper = sweeper_of(belfry, *stores, Store(raw.client(store), store.settings, "wrong"))
    for _ in range(5):
        sweeper.tick()

    assert caplog.text.count("cannot sweep task-") == 1
    assert caplog.text.count("cannot sweep wrong") == 1
