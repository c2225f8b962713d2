"""Some seeds of the simulation of the way back, and every seed that ever failed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.properties.reporting import FAILED_SEEDS, House

#: `SEEDS=20` plays fewer on a real server; the fake one takes longer.
SEEDS = {"real": int(os.environ.get("SEEDS", "200")), "fakeredis": 20}
#: One app is made for so many of them.
CHUNK = 20
GAMES = [
    pytest.param(server, range(first, min(first + CHUNK, seeds)), id=f"{server}-{first}")
    for server, seeds in SEEDS.items()
    for first in range(0, seeds, CHUNK)
]


@pytest.fixture
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    """An app whose calls wait in a fake or a real server."""
    real = request.param == "real"
    logging.disable(logging.CRITICAL)
    with House(request.getfixturevalue("shared_url") if real else None).open() as opened:
        yield opened
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("house", "seeds"),
    [*GAMES, pytest.param("real", FAILED_SEEDS, id="failed")],
    indirect=["house"],
)
def test_every_caller_is_told_what_happened(house: House, seeds: range | tuple[int, ...]) -> None:
    """Once, whatever the function does and whatever fails; and nothing runs for ever."""
    failed = {}
    for seed in seeds:
        try:
            house.play(seed)
        except AssertionError as exc:
            failed[seed] = str(exc)

    assert not failed
