"""Runs the Python blocks of the README, top to bottom, against a fake Redis."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import redis_batches.runtime


def _setup(namespace: dict[str, Any]) -> None:
    namespace["patch"] = pytest.MonkeyPatch()
    namespace["patch"].setattr(redis_batches.runtime, "connect", lambda *_: fakeredis.FakeRedis())


def _teardown(namespace: dict[str, Any]) -> None:
    namespace["patch"].undo()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], pattern="README.md", setup=_setup, teardown=_teardown
).pytest()
