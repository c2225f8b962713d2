"""The README is true today: its Python blocks run, one after another, as one program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fakeredis
import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[tuple[int, str]]:
    """Returns each Python block with the line it begins at."""
    text = README.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def test_the_blocks_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they define works: a click is stored, a word is translated."""
    client = fakeredis.FakeRedis()
    monkeypatch.setattr("redis_batches.buffer.stores.connect", lambda *_: client)
    program: dict[str, Any] = {"__name__": "readme"}

    for line, source in blocks():
        exec(compile("\n" * (line - 1) + source, str(README), "exec"), program)

    program["count_click"].apply_async(kwargs={"url": "http://example.com"}, ignore_result=True)
    assert program["count_click"].stats()["waiting"] == 1
    program["import_clicks"]([{"url": "http://example.com"}] * 2)
    assert program["count_click"].stats()["waiting"] == 3
    assert program["translate"].stats()["waiting"] == 2
    assert program["translate"]("deux") == "two"
    with pytest.raises(KeyError):
        program["translate"]("trois")
