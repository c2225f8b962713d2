"""A click counter: clicks come one by one, and are counted a hundred at a time.

In one terminal a worker, in another some clicks; `REDIS_URL` names the server of both:

    celery -A examples.clicks worker --beat
    python -m examples.clicks 10000
"""

import os
import random
import sys
from collections import Counter

from celery import Celery
from celery.utils.log import get_task_logger

from redis_batches import SimpleRequest, batched_task

PAGES = ["/", "/pricing", "/docs", "/blog"]

# Named, so that the task has the same name here as in `python -m examples.clicks`.
app = Celery("examples.clicks", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
logger = get_task_logger(__name__)


@batched_task(app=app, flush_every=100, flush_interval=10)
def count_click(requests: list[SimpleRequest]) -> None:
    clicks = Counter(request.kwargs["url"] for request in requests)
    for url, count in clicks.most_common():
        logger.info("%s: %d clicks", url, count)


def main(clicks: int = 10_000) -> None:
    for _ in range(clicks):
        count_click.delay(url=random.choice(PAGES))
    print(f"{clicks:,} clicks sent")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
