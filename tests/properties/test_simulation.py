"""Some seeds of the simulation, and every seed that ever failed, on both kinds of server."""

from __future__ import annotations

import os

import fakeredis
import pytest
import redis

from tests.properties.simulation import FAILED_SEEDS, Simulation, play

#: The fake server takes three times as long.
#: `SEEDS=20` plays fewer on a real server.
SEEDS = {"real": int(os.environ.get("SEEDS", "200")), "fakeredis": 60}
GAMES = [
    pytest.param(server, seed, id=f"{server}-{seed}")
    for server, seeds in SEEDS.items()
    for seed in sorted({*FAILED_SEEDS, *range(seeds)})
]


@pytest.mark.parametrize(("client", "seed"), GAMES, indirect=["client"])
def test_every_guarantee_holds(client: redis.Redis, seed: int) -> None:
    """After every step, whatever goes wrong; and in the end everything has ended once."""
    play(client, seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_is_the_same_game_everywhere(shared_url: str, seed: int) -> None:
    """So that a seed that failed can be played again, on either server."""
    with redis.Redis.from_url(shared_url) as real:
        games = [Simulation(client, seed) for client in (fakeredis.FakeRedis(), real)]
        for game in games:
            game.play()

    assert games[0].world.calls == games[1].world.calls
    assert games[0].world.times == games[1].world.times
