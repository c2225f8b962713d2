"""What the benchmarks make of what they measure."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import parse
from benchmarks.bare import _unpack
from benchmarks.bench import Bench, Section
from benchmarks.picture import Bar, bars_of, draw
from benchmarks.report import as_json, markdown
from benchmarks.side import Run
from benchmarks.values import Column, Row, Values
from redis_batches.driver.connection import connect

RATE, SIZE = Row("calls", "calls/s"), Row("memory", "B", less_is_better=True)
LATE = Row("late", "ms", less_is_better=True, has_ratio=False)


@pytest.fixture
def values() -> Values:
    """Two rounds of both sides, and of a limit."""
    values = Values()
    values.add(RATE, "ours", 300, 500)
    values.add(RATE, "theirs", 100, 100)
    values.add(RATE, "limit", 330, 500)
    values.add(SIZE, "ours", 200, 250)
    values.add(SIZE, "theirs", 1000, 1000)
    values.add(LATE, "ours", 5, 6)
    values.add(LATE, "theirs", -20, 3)
    return values


def section() -> Section:
    columns = (Column("ours", "ours"), Column("ratio", "better", "x"), Column("none", "nothing"))

    def measure(bench: Bench, values: Values) -> None:
        raise NotImplementedError

    return Section("compare", "Compared", "A note.", columns, measure)


def test_a_ratio_says_how_many_times_better_a_side_is(values: Values) -> None:
    """More is better for a rate, less for a size; each round is compared with itself."""
    values.compare("ratio", "ours", "theirs")

    assert values.of(RATE, "ratio") == [3, 5]
    assert values.of(SIZE, "ratio") == [5, 4]
    assert not values.of(LATE, "ratio")


def test_a_limit_says_how_many_times_as_long_ours_takes(values: Values) -> None:
    """It stands only where there is a limit."""
    values.compare("of_limit", "ours", "limit", times_as_long=True)

    assert values.of(RATE, "of_limit") == [1.1, 1]
    assert not values.of(SIZE, "of_limit")


def test_growth_is_measured_by_the_first_row(values: Values) -> None:
    """Round by round."""
    values.relate("growth", "ours", [SIZE, RATE])

    assert values.of(SIZE, "growth") == [1, 1]
    assert values.of(RATE, "growth") == [1.5, 2]


def test_a_table_has_the_median_and_the_spread_of_every_cell(values: Values) -> None:
    """A column in which nothing was measured is left out; what has one value has no spread."""
    values.compare("ratio", "ours", "theirs")
    values.add(Row("once", "s"), "ours", 7)

    text = markdown({"processor": "one of 1984"}, {section(): values})

    assert "- processor: one of 1984" in text
    assert (
        "| calls | calls/s | 400<br><sub>300-500</sub> | 4.00x<br><sub>3.00-5.00x</sub> |" in text
    )
    assert "| once | s | 7.00 |  |" in text
    assert "nothing" not in text


def test_the_json_has_the_value_of_every_round(values: Values) -> None:
    """Also of what is no ratio."""
    found = as_json({"server": "s"}, {"calls": 3}, {section(): values})

    assert found["machine"] == {"server": "s"}
    assert found["sizes"] == {"calls": 3}
    rows = {row["title"]: row["values"] for row in found["sections"]["compare"]}
    assert rows["late"] == {"ours": [5, 6], "theirs": [-20, 3]}


def test_the_picture_has_one_bar_per_comparison(values: Values) -> None:
    """A bar begins at 1 and ends to the right of it, unless theirs is better."""
    values.compare("ours_to_theirs", "ours", "theirs")
    bars = [*bars_of(values), Bar("worse", 0.5, 0.4, 0.6)]

    root = ElementTree.fromstring(draw(bars, "a caption"))

    drawn = [node for node in root if node.get("class") == "bar"]
    texts = [node.text for node in root]
    assert [bar.title for bar in bars] == ["calls", "memory", "worse"]
    assert {"calls", "4.00x", "memory", "4.50x", "worse", "0.50x", "a caption"} <= {*texts}
    starts = [float(node.get("x", "")) for node in drawn]
    ends = [float(node.get("x", "")) + float(node.get("width", "")) for node in drawn]
    assert starts[0] == starts[1] == pytest.approx(ends[2], abs=0.2)
    assert ends[0] < ends[1]


def test_a_picture_of_nothing_is_still_a_picture() -> None:
    """As when no section compares."""
    assert ElementTree.fromstring(draw([], "")).tag.endswith("svg")


def test_a_run_is_read_as_it_was_noted() -> None:
    """With the waits of its requests, where they are noted."""
    assert Run.read("1.5 2 - 0.1 0.2") == Run(1.5, 2, (0.1, 0.2))
    assert Run.read("1.5 100 count_late_page_1") == Run(1.5, 100)


def test_the_bytes_of_a_command_are_taken_apart() -> None:
    """As redis-py sends them: in pieces, with line ends in the arguments."""
    client = connect("redis://127.0.0.1:1", 1, 0)
    packed = client.connection_pool.make_connection().pack_command("EVALSHA", b"a\r\nb", 1, "")

    assert _unpack(packed) == [b"EVALSHA", b"a\r\nb", b"1", b""]
    assert _unpack([b"*1\r\n$4\r\n", b"PI", b"NG\r\n"]) == [b"PING"]


def test_sections_are_chosen_in_the_order_of_the_report() -> None:
    """Without a choice all are measured, three times or quickly once."""
    assert [s.name for s in parse(["--only", "scaling", "compare"]).sections] == [
        "compare",
        "scaling",
    ]
    assert len(parse([]).sections) == 7
    assert parse([]).rounds == 3
    assert parse(["--quick"]).rounds == 1
    assert parse(["--quick", "--rounds", "2"]).rounds == 2
