"""Batch steps at every place of a canvas: values, ids, failures, retries, on real workers."""

from __future__ import annotations

import importlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import chain, chord, group, states
from celery.canvas import StampingVisitor

from tests.support.ledger import noted
from tests.support.processes import Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.canvas"


@pytest.fixture(scope="module")
def tasks(lasting_cluster: Cluster) -> Any:
    """The tasks, with one worker that serves them all."""
    module = importlib.import_module(APP)
    lasting_cluster.worker("-E", concurrency=3, TEST_SIGNALS="1")
    return module


def runs_of(task_id: str) -> int:
    """Returns how often the body of a chord ran."""
    return sum(task_id in run["ids"] for run in noted("ledger"))


# -- Values


CANVASES: dict[str, tuple[Any, Any]] = {
    "batch first": (lambda t: chain(t.double.s(1), t.plus.s(1), t.plus.s(1)), 4),
    "batch in the middle": (lambda t: chain(t.plus.s(1, 1), t.double.s(), t.plus.s(1)), 5),
    "batch last": (lambda t: chain(t.plus.s(1, 1), t.plus.s(1), t.double.s()), 6),
    "batches only": (lambda t: chain(t.double.s(1), t.double.s(), t.double.s()), 8),
    "result ignored on the way": (lambda t: chain(t.double_ignored.s(1), t.plus.s(1)), 3),
    "immutable": (lambda t: chain(t.double.s(1), t.double.si(10), t.plus.s(1)), 21),
    "group": (lambda t: group(t.double.s(1), t.plus.s(1, 1), t.double.s(3)), [2, 2, 6]),
    "group into a batch": (lambda t: group(t.double.s(1), t.plus.s(1, 1)) | t.total.s(), 4),
    "group in a chain": (
        lambda t: chain(t.double.s(1), group(t.double.s(), t.plus.s(1)), t.total.s()),
        7,
    ),
    "group at the end": (lambda t: chain(t.double.s(1), group(t.double.s(), t.plus.s(1))), [4, 3]),
    "batch header": (lambda t: chord([t.double.s(n) for n in range(6)], t.plain_total.s()), 30),
    "mixed header, batch body": (lambda t: chord([t.double.s(1), t.plus.s(1, 1)], t.total.s()), 4),
    "ignored parts": (lambda t: chord([t.double_ignored.s(n) for n in range(3)], t.total.s()), 6),
    "chord of chains": (
        lambda t: chord(
            [chain(t.double.s(1), t.plus.s(1), t.double.s()), chain(t.plus.s(1, 1), t.double.s())],
            t.total.s(),
        ),
        10,
    ),
    "chain with a chord": (
        lambda t: chain(
            t.double.s(1), chord([t.double.s(), t.plus.s(1)], t.total.s()), t.double.s()
        ),
        14,
    ),
    "chord in a chord": (
        lambda t: chord(
            [chord([t.double.s(1), t.double.s(2)], t.total.s()), t.double.s(5)], t.total.s()
        ),
        16,
    ),
    "chord whose body is a chain": (
        lambda t: chord([t.double.s(1), t.double.s(2)], chain(t.total.s(), t.double.s())),
        12,
    ),
    "chord of one": (lambda t: chord([t.double.s(2)], t.total.s()), 4),
    "retried part": (
        lambda t: chord([t.retry_once.s(1), t.double.s(2), t.autoretry.s(3)], t.total.s()),
        8,
    ),
    "retried step": (lambda t: chain(t.retry_once.s(1), t.autoretry.s(), t.double.s()), 2),
    "map": (lambda t: t.double.map([1, 2]), [2, 4]),
    "starmap": (lambda t: t.double.starmap([(1,), (2,)]), [2, 4]),
    "chunks": (lambda t: t.double.chunks([(1,), (2,), (3,)], 2), [[2, 4], [6]]),
    "chunks as a group": (lambda t: t.double.chunks([(1,), (2,), (3,)], 2).group(), [[2, 4], [6]]),
}


@pytest.mark.parametrize("name", CANVASES)
def test_a_batch_step_works_at_any_place(tasks: Any, name: str) -> None:
    """The value is that of the same canvas of plain tasks; the body of a chord runs once."""
    make, expected = CANVASES[name]

    result = make(tasks).apply_async()

    assert result.get(timeout=20) == expected
    assert (
        max((runs_of(task_id) for run in noted("ledger") for task_id in run["ids"]), default=1) == 1
    )


@pytest.mark.parametrize("name", ["done", "done_by_id", "retry", "retry_by_id"])
@pytest.mark.parametrize("thread", ["", "_in_thread"])
def test_code_for_celery_batches_takes_part_in_a_canvas(tasks: Any, name: str, thread: str) -> None:
    """With and without `request=`, from the batch's own thread and from another."""
    step = tasks.SETTLERS[name + thread]

    in_chain = chain(step.s(1), tasks.plus.s(1), step.s()).apply_async()
    in_chord = chord([step.s(1), tasks.double.s(2), step.s(3)], tasks.total.s()).apply_async()
    linked = step.apply_async((4,), link=tasks.plus.s(1))

    assert in_chain.get(timeout=20) == 6
    assert in_chord.get(timeout=20) == 12
    assert runs_of(in_chord.id) == 1
    assert linked.get(timeout=20) == 8
    assert wait_until(lambda: linked.children, description="the link")[0].get(timeout=20) == 9


@pytest.mark.parametrize("name", ["failure", "failure_by_id"])
@pytest.mark.parametrize("thread", ["", "_in_thread"])
def test_mark_as_failure_fails_what_follows(tasks: Any, name: str, thread: str) -> None:
    """Chain, chord and errback hear of it."""
    step = tasks.SETTLERS[name + thread]

    in_chain = chain(step.s(1), tasks.plus.s(1)).apply_async()
    in_chord = chord([step.s(1), tasks.double.s(2)], tasks.total.s()).apply_async()
    watched = step.apply_async((1,), link_error=tasks.new_errback.s())

    for result in (in_chain, in_chord):
        with pytest.raises(Exception, match="marked"):
            result.get(timeout=20)
    told = wait_until(
        lambda: [e for e in noted("new") if e[0] == watched.id], description="errback"
    )
    assert told[0][1] == "marked"


# -- Links


def test_links_are_called_with_the_result(tasks: Any) -> None:
    """A task, a batch, a chain, a group; a list of them."""
    hear, double = tasks.hear, tasks.double
    links = [
        hear.s("task"),
        tasks.batch_hear.s("batch"),
        chain(double.s(), hear.s("chain")),
        group(hear.s("group"), double.s() | hear.s("chain in group")),
    ]

    assert double.apply_async((1,), link=links).get(timeout=20) == 2
    assert double.apply_async((10,), link=hear.s("alone")).get(timeout=20) == 20

    expected = [["alone", 20], ["batch", 2], ["chain", 4], ["chain in group", 4], ["group", 2]]
    expected.append(["task", 2])
    wait_until(lambda: sorted(noted("heard")) == expected, description="all that is linked")


def test_errbacks_are_called_for_the_request_that_failed(tasks: Any) -> None:
    """Old style with its id, new style with (request, exc, traceback), and as a batch."""
    errbacks = [tasks.old_errback.s(), tasks.new_errback.s(), tasks.batch_errback.s()]
    results = [tasks.fail_odd.apply_async((n,), link_error=errbacks) for n in (0, 1, 2, 3)]
    failed = [results[1].id, results[3].id]
    whole = tasks.raising.apply_async((1,), link_error=errbacks)

    def told(name: str) -> list[str]:
        return [
            task_id for line in noted(name) for task_id in (line if name != "new" else line[:1])
        ]

    for name in ("old", "new", "batch"):
        wait_until(lambda name=name: {*failed, whole.id} <= set(told(name)), description=name)
        counts = Counter(told(name))
        assert {counts[task_id] for task_id in (*failed, whole.id)} == {1}
        assert not {results[0].id, results[2].id} & set(counts)
    errors = {task_id: text for task_id, text, _ in noted("new")}
    assert [errors[task_id] for task_id in failed] == ["odd 1", "odd 3"]
    assert errors[whole.id] == "all of it"


# -- Failing parts


def test_a_failing_part_fails_its_chord_once(tasks: Any) -> None:
    """The body never runs, its errback does; parts that went well keep their results."""
    header = group(tasks.fail_odd.s(n) for n in range(4))
    body = tasks.total.s().on_error(tasks.new_errback.s())

    result = chord(header)(body)

    with pytest.raises(Exception, match="odd"):
        result.get(timeout=20)
    wait_until(lambda: result.state == states.FAILURE, description="its state")
    assert result.parent[0].get(timeout=20) == 0
    assert result.parent[2].get(timeout=20) == 2
    wait_until(lambda: [e for e in noted("new") if e[0] == result.id], description="its errback")
    assert runs_of(result.id) == 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_failing_step_ends_its_chain(tasks: Any, place: int) -> None:
    """What follows fails with its exception, also inside a chord."""
    steps = [tasks.plus.si(1, 1), tasks.double.si(1), tasks.plus.si(1, 1)]
    steps[place] = tasks.raising.si()

    alone = chain(*steps).apply_async()
    inside = chord([chain(*steps), tasks.double.s(1)], tasks.total.s()).apply_async()

    for result in (alone, inside):
        with pytest.raises(Exception, match="all of it"):
            result.get(timeout=20)
    assert runs_of(inside.id) == 0


def test_a_group_tells_each_failure(tasks: Any) -> None:
    """And each success."""
    result = group(tasks.fail_odd.s(n) for n in range(4)).apply_async()

    values = result.get(timeout=20, propagate=False)
    assert [str(value) for value in values] == ["0", "odd 1", "2", "odd 3"]
    assert result.failed()
    assert result.completed_count() == 2


# -- Ids


def test_results_know_parent_children_and_root(tasks: Any) -> None:
    """The result's own, the stored ones, and what a request says."""
    first, second, third = tasks.double.s(1), tasks.ancestry.si(), tasks.who.si()
    last = chain(first, second, third).apply_async()
    middle, root = last.parent, last.parent.parent

    root_id, parent_id = last.get(timeout=20)
    request = middle.get()
    assert (root_id, parent_id) == (root.id, middle.id)
    assert (request["id"], request["root_id"], request["parent_id"]) == (
        middle.id,
        root.id,
        root.id,
    )
    assert [child.id for child in root.children] == [middle.id]
    assert [child.id for child in middle.children] == [last.id]
    assert root.get_leaf() == [root.id, middle.id] or root.get_leaf() == last.get()
    assert {str(node) for node in root.graph} == {root.id, middle.id, last.id}


def test_parts_of_a_group_know_it(tasks: Any) -> None:
    """Each has the group's id; those that a plain task calls become its children."""
    result = chain(tasks.plus.s(1, 1), group(tasks.ancestry.s(), tasks.ancestry.s())).apply_async()

    found = result.get(timeout=20)
    assert [part["group"] for part in found] == [result.id] * 2
    assert [part["parent_id"] for part in found] == [result.parent.id] * 2
    assert [part["root_id"] for part in found] == [result.parent.id] * 2
    assert [child.id for child in result.parent.children] == [result.id]


def test_stamps_reach_every_step(tasks: Any) -> None:
    """As Celery's stamping visitors put them on."""

    class Stamp(StampingVisitor):
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"trace": "abc", "stamped_headers": ["trace"]}

    canvas = chain(tasks.double.s(1), group(tasks.ancestry.s(), tasks.ancestry.s()))
    canvas.stamp(Stamp())

    found = canvas.apply_async().get(timeout=20)
    assert [part["stamps"]["trace"] for part in found] in (["abc"] * 2, [["abc"]] * 2)


def test_what_a_batch_calls_has_the_batch_as_its_parent(tasks: Any) -> None:
    """Not one of the requests: the function sees them all at once."""
    called = [tasks.calling.delay() for _ in range(2)]

    ids = [result.get(timeout=20) for result in called]
    ancestors = [tasks.app.AsyncResult(task_id).get(timeout=20) for task_id in ids]
    assert {parent for _, parent in ancestors}.isdisjoint({result.id for result in called})
    assert all(parent for _, parent in ancestors)
    assert [result.children for result in called] == [[], []]


# -- What a batch cannot do


def test_a_batch_cannot_be_replaced(tasks: Any) -> None:
    """`self.replace` says so to each caller."""
    with pytest.raises(Exception, match=r"replace\(\) cannot replace a batch"):
        tasks.replacing.delay().get(timeout=20)


def test_a_state_of_ones_own_belongs_to_a_request(tasks: Any) -> None:
    """`update_state` takes its id."""
    state, info, refused = tasks.progress.delay(7).get(timeout=20)

    assert (state, info) == ("PROGRESS", {"at": 7})
    assert "needs the task_id of a request" in refused


# -- Signals and events


def test_handlers_and_the_current_request_are_the_batchs(tasks: Any) -> None:
    """`before_start`, `on_success`, `after_return` once per batch; STARTED per request."""
    results = [tasks.handled.delay() for _ in range(4)]

    states_then, batches = zip(*(result.get(timeout=20) for result in results), strict=True)
    assert set(states_then) == {states.STARTED}
    (batch,) = set(batches)
    assert batch not in {result.id for result in results}
    expected = [[name, batch] for name in ("before_start", "on_success", "after_return")]
    wait_until(lambda: noted("handled") == expected, description="its handlers")


@contextmanager
def listening(app: Any) -> Iterator[list[dict[str, Any]]]:
    """Collects the events of all workers and callers."""
    events: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        thread = threading.Thread(target=lambda: receiver.capture(limit=None, wakeup=False))
        thread.start()
        try:
            wait_until(lambda: events, description="a heartbeat of the worker")
            yield events
        finally:
            receiver.should_stop = True
            thread.join(10)


@pytest.mark.parametrize(
    ("name", "ends"), [("well", "success"), ("badly", "failure"), ("again", "retry")]
)
def test_a_worker_tells_of_batches_a_caller_of_calls(tasks: Any, name: str, ends: str) -> None:
    """Signals and events of a worker are those of the doorbell, task-sent those of each call."""
    task = getattr(tasks, name)
    before = len(noted("signal"))
    with listening(tasks.app) as events:
        results = [task.delay(number) for number in range(4)]
        for result in results:
            result.get(timeout=20, propagate=False)
        kinds = {"success": "succeeded", "failure": "failed", "retry": "retried"}
        event = f"task-{kinds[ends]}"
        wait_until(lambda: event in {e["type"] for e in events}, description=event)

        def sent() -> set[str]:
            return {e["uuid"] for e in events if e["type"] == "task-sent"}

        wait_until(lambda: len(sent()) == 4, description="task-sent per call")

    def told(kind: str) -> list[str]:
        lines = noted("signal")[before:]
        return [task_id for one, sender, task_id in lines if (one, sender) == (kind, task.name)]

    wait_until(lambda: len(told("postrun")) == len(told("prerun")), description="the batch's end")
    assert len(told(ends)) == 1
    assert len(told("prerun")) == (2 if ends == "retry" else 1)
    ids = {result.id for result in results}
    assert ids.isdisjoint({*told("prerun"), *told("received")})
    assert sent() == ids
    of_batches = {e["uuid"] for e in events if e["type"] == event}
    assert len(of_batches) == 1
    assert ids.isdisjoint(of_batches)
