"""The table and the JSON file."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import redis
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.figures import FIGURES

#: What one side measured in a round, by the keys of the figures.
Round = dict[str, float]


def collect(ours: Sequence[Round], theirs: Sequence[Round]) -> dict[str, dict[str, list[float]]]:
    """Returns the values of each figure, round by round.

    Per figure: `ours`, `theirs`, `ratio` (how many times better ours is), and if the figure has a
    limit also `limit` and `of_limit` (how many times as long as the limit ours takes).
    """
    found = {}
    for figure in FIGURES:
        a, b = [r[figure.key] for r in ours], [r[figure.key] for r in theirs]
        better = zip(a, b, strict=True) if figure.more_is_better else zip(b, a, strict=True)
        values = {"ours": a, "theirs": b, "ratio": [x / y for x, y in better]}
        if (key := f"limit.{figure.key}") in ours[0]:
            values["limit"] = [r[key] for r in ours]
            values["of_limit"] = [r[key] / r[figure.key] for r in ours]
        found[figure.key] = values
    return found


def show(console: Console, machine: dict[str, str], values: dict[str, Any]) -> None:
    """Prints the table, and below it what it was measured on."""
    table = Table(box=SIMPLE, padding=(0, 1, 1, 0))
    table.add_column("median\nmin-max")
    for title in ("ours", "theirs", "ours is\nbetter", "bare EVALSHA,\nours takes"):
        table.add_column(title, justify="right", no_wrap=True)
    for figure in FIGURES:
        found = values[figure.key]
        limit = ""
        if "limit" in found:
            limit = _cell(found["limit"], figure.digits) + "\n" + _cell(found["of_limit"], 2, "x")
        table.add_row(
            f"{figure.title}\n[dim]{figure.unit}[/dim]",
            _cell(found["ours"], figure.digits),
            _cell(found["theirs"], figure.digits),
            _cell(found["ratio"], 1, "x"),
            limit,
        )
    console.print(table)
    for name, value in machine.items():
        console.print(f"{name}: {value}", highlight=False, soft_wrap=True)


def describe_machine(url: str, versions: dict[str, str]) -> dict[str, str]:
    """Returns what the figures depend on: processor, versions, and what else kept it busy.

    Args:
        url: The server.
        versions: What each side has installed, by its name.
    """
    with redis.Redis.from_url(url) as client:
        info: Any = client.info("server")
    server = info.get("server_name", "redis")
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "server": f"{server} {info.get(f'{server}_version', info['redis_version'])}",
        **versions,
    }


def _cell(numbers: list[float], digits: int, sign: str = "") -> str:
    middle, low, high = (
        f"{number:,.{digits}f}" for number in (median(numbers), min(numbers), max(numbers))
    )
    return f"{middle}{sign}\n[dim]{low}-{high}[/dim]"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
