"""An app without a server."""

from __future__ import annotations

from collections.abc import Iterator

import fakeredis
import pytest
from celery import Celery, _state


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An app whose broker and results are in memory, and whose requests wait in a fake Redis."""
    # Tasks are shared with every app that is made later: those of other tests shall not be.
    own = {make for make in _state._on_app_finalizers if make.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", own)
    made = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    made.conf.redis_batches_url = "redis://127.0.0.1:1/0"
    monkeypatch.setattr("redis_batches.buffer.stores.connect", lambda *_: fakeredis.FakeRedis())
    yield made
    made.close()
