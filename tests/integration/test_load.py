"""Several producers and several workers at once, over many calls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from tests.support.ledger import ledger
from tests.support.processes import ROOT, Cluster
from tests.support.waiting import wait_until

CALLS, PRODUCERS = 50_000, 4
#: A machine under test may be slow: what a bound is exceeded by without saying anything.
SLACK = 2.0


@pytest.mark.timeout(240)
def test_every_call_runs_exactly_once(cluster: Cluster, shop: Any) -> None:
    """No call is lost or doubled, no batch is too large, none is late."""
    for _ in range(3):
        cluster.worker(concurrency=1)
    share = CALLS // PRODUCERS
    command = [sys.executable, "-m", "tests.integration.apps.produce"]
    producers = [
        subprocess.Popen(
            [*command, str(index * share), str(share), str(index)],
            cwd=ROOT,
            env={**os.environ, **cluster.env},
        )
        for index in range(PRODUCERS)
    ]
    for producer in producers:
        assert producer.wait(180) == 0

    wait_until(lambda: shop.load.stats()["acked"] >= CALLS, 60, description="all are acked")

    runs = ledger()
    numbers = Counter(args[0] for run in runs for args in run["args"])
    assert numbers == Counter(range(CALLS))
    assert max(len(run["ids"]) for run in runs) <= 100
    partial = [run for run in runs if len(run["ids"]) < 100]
    assert all(run["at"] - min(run["since"]) < 1 + 1 + SLACK for run in partial)
    assert len({run["pid"] for run in runs}) == 3
    stats = shop.load.stats()
    assert (stats["pushed"], stats["waiting"], stats["running"]) == (CALLS, 0, 0)
