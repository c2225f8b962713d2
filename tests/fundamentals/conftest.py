"""One fixture: a worker that is this process, on a real server."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from celery import Celery, _state

from redis_batches.testing.worker import Worker


@pytest.fixture
def worker(shared_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker for an app without tasks; calls and results are in one real server."""
    # Celery gives tasks to every app that is made later: those of a test end with it.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    # Celery 5.5 looks for the groups of chords in the current app.
    monkeypatch.setattr(_state._tls, "current_app", None)
    app = Celery("shop", broker="memory://", backend=shared_url)
    app.conf.redis_batches_url = shared_url
    app.conf.redis_batches_namespace = namespace
    with Worker(app) as made:
        yield made
    # What is left of results asks the backend once more, which must be there then.
    gc.collect()
    app.close()
