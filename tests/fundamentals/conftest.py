"""One fixture: a worker that is this process, on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery, _state

from redis_batches.testing.worker import Worker


@pytest.fixture
def worker(shared_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker for an app without tasks; calls and results are in one real server."""
    # Celery gives tasks to every app that is made later: those of a test end with it.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    app = Celery("shop", broker="memory://", backend=shared_url, set_as_current=False)
    app.conf.redis_batches_url = shared_url
    app.conf.redis_batches_namespace = namespace
    with Worker(app) as made:
        yield made
    app.close()
