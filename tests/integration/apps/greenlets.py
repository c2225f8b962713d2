"""A program under gevent whose greenlets call one task: `greenlets.py URL NAMESPACE`."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402

import gevent  # noqa: E402
from celery import Celery  # noqa: E402
from gevent.event import Event  # noqa: E402

from redis_batches import batched_task  # noqa: E402
from redis_batches.app.state import runtime_of  # noqa: E402

app = Celery("calls", broker=sys.argv[1], backend=sys.argv[1])
app.conf.redis_batches_namespace = sys.argv[2]


@batched_task(10_000, 60, app=app, name="click")
def click(requests):
    """Never runs."""


def main():
    """Calls from many greenlets; some are killed, one times out while it leads."""
    click.delay(0)
    click.delay(0)
    store = runtime_of(app).store("click")
    push, sizes, held = store.push, [], Event()

    def counted(group, trigger, requests, **options):
        sizes.append(len(requests))
        held.wait()
        return push(group, trigger, requests, **options)

    runtime_of(app).committer("click")._push = counted
    greenlets = [gevent.spawn(click.delay, number) for number in range(300)]
    while len(runtime_of(app).committer("click")._waiting) < 299:
        gevent.sleep(0)
    assert sizes == [1]
    # One that waits; the first leader; then the second leader, when it has taken all others.
    greenlets[150].kill()
    greenlets[0].kill()
    while len(sizes) < 2:
        gevent.sleep(0)
    greenlets[1].kill()
    held.set()
    gevent.joinall(greenlets, timeout=60)
    assert all(greenlet.ready() for greenlet in greenlets), "a greenlet is stranded"
    killed = (0, 1, 150)
    results = [greenlet.value for i, greenlet in enumerate(greenlets) if i not in killed]
    assert len({result.id for result in results}) == 297
    assert sizes == [1, 298, 297], sizes
    stored = click.stats()["pushed"] - 2
    assert stored == 297, stored
    print("ok")


if __name__ == "__main__":
    main()
