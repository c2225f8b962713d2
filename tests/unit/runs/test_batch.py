"""The ledger of a run: what was decided of each request, and what was not."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from redis_batches.core.outcomes import Outcome, Verb
from redis_batches.runs.batch import Batch, Fate


class Request(NamedTuple):
    """All that the ledger knows of a request."""

    id: str


@pytest.fixture
def batch() -> Batch[Request]:
    """Three requests that the function sees, and one that it does not."""
    made = Batch(Request(name) for name in "abc")
    made.hold(Request("held"))
    return made


def ids(requests: Any) -> list[str]:
    """Returns the ids of some requests."""
    return [request.id for request in requests]


def test_what_is_known_is_undecided_at_first(batch: Batch[Request]) -> None:
    """Also what the function does not see."""
    assert ids(batch.requests) == ["a", "b", "c"]
    assert ids(batch.undecided) == ids(batch) == ["a", "b", "c", "held"]
    assert batch.find("held") == Request("held")
    assert batch.find("nobody") is None


def test_what_is_settled_has_its_value(batch: Batch[Request]) -> None:
    """And is found no more."""
    assert batch.settle("a", 7, Fate.FORGOTTEN) is Fate.FORGOTTEN

    assert batch.values == {"a": 7}
    assert batch.is_decided("a")
    assert batch.find("a") is None
    assert ids(batch.undecided) == ["b", "c", "held"]


def test_a_call_that_took_a_request_over_keeps_it(batch: Batch[Request]) -> None:
    """It came while the outcome was being stored: the batch must not forget it."""
    batch.decide("a", Fate.ELSEWHERE)

    assert batch.settle("a", 7, Fate.FORGOTTEN) is Fate.ELSEWHERE
    assert batch.unsaved == {"a": Fate.ELSEWHERE}


class Interrupted(dict[str, Any]):
    """Where an exception of a signal's handler breaks in."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise InterruptedError


def test_what_breaks_in_comes_before_a_decision_or_after_it(batch: Batch[Request]) -> None:
    """A request is never half decided: without its value it has no outcome."""
    batch.values = Interrupted()

    with pytest.raises(InterruptedError):
        batch.settle("a", 7, Fate.FORGOTTEN)

    assert not batch.is_decided("a")


def test_what_may_have_been_stored_is_doubtful_until_it_is_decided(batch: Batch[Request]) -> None:
    """Whoever goes on reads its state first."""
    batch.suspect(["a", "b"])
    batch.settle("a", 7, Fate.FORGOTTEN)

    assert ids(batch.doubtful) == ["b"]


def test_what_an_earlier_run_settled_is_not_seen(batch: Batch[Request]) -> None:
    """It is forgotten at the end; the others stay in their order."""
    batch.leave_out([Request("b")])

    assert ids(batch.requests) == ["a", "c"]
    assert batch.unsaved == {"b": Fate.FORGOTTEN}


def test_what_was_claimed_and_never_decoded_is_put_back(batch: Batch[Request]) -> None:
    """Only what has no outcome."""
    batch.settle("a", 7, Fate.FORGOTTEN)
    batch.put_back_rest(["a", "b", "not decoded"], Verb.POSTPONE, 5, "an outage")

    assert batch.unsaved == {
        "a": Fate.FORGOTTEN,
        "b": Outcome("b", Verb.POSTPONE, 5, "an outage"),
        "not decoded": Outcome("not decoded", Verb.POSTPONE, 5, "an outage"),
    }


def test_what_was_reclaimed_is_no_longer_this_batchs(batch: Batch[Request]) -> None:
    """What was decided before that stays decided."""
    batch.settle("a", 7, Fate.FORGOTTEN)
    batch.abandon_rest()

    assert batch.undecided == []
    assert batch.unsaved == {
        "a": Fate.FORGOTTEN,
        **dict.fromkeys(("b", "c", "held"), Fate.ELSEWHERE),
    }


def test_redis_is_told_each_decision_once(batch: Batch[Request]) -> None:
    """What it knows is not sent again when the batch ends."""
    batch.settle("a", 7, Fate.FORGOTTEN)
    batch.note_saved(["a"])
    batch.settle("b", 8, Fate.FORGOTTEN)

    assert batch.unsaved == {"b": Fate.FORGOTTEN}
    assert batch.is_decided("a")
