"""A request that is to blame is isolated; an outage, for which none is, splits nothing."""

from __future__ import annotations

from math import log2

import pytest

from tests.properties.poison import SIZES, measure, outage


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_one_that_kills_its_worker_costs_a_few_crashes(size: int, place: int) -> None:
    """No innocent request dies; one runs again for each crash of a batch it was in."""
    cost = measure(size, place % size, kills=True)

    assert cost.poison == "FAILURE"
    assert cost.failures <= log2(size) + 3
    assert cost.innocents_lost == 0
    assert cost.most_runs <= cost.failures - 2
    assert cost.runs <= 3 * size


@pytest.mark.parametrize("size", SIZES)
def test_one_that_fails_its_batch_fails_alone(size: int) -> None:
    """While others go well, and the task's tries last for the halving."""
    cost = measure(size, size // 2, kills=False, max_retries=20)

    assert cost.poison == "FAILURE"
    assert cost.failures <= 1 + 20
    assert cost.innocents_lost == 0
    assert cost.most_runs <= log2(size) + 3


@pytest.mark.parametrize(
    "options", [{"default_retry_delay": 10}, {"retry_backoff": 2}], ids=["delay", "backoff"]
)
def test_an_outage_of_a_minute_splits_nothing(options: dict[str, int]) -> None:
    """Everything fails for a minute while calls go on; then batches are full."""
    drain = outage(max_retries=None, **options)

    assert drain.lost == 0
    assert drain.splits == {0}
    assert sum(drain.sizes) == drain.calls
    assert set(drain.sizes) == {20}
