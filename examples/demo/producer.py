"""A caller: sends clicks and questions, fetches the answers, and reports what it knows.

`python -m examples.demo.producer SEED CALLS QUESTIONS QUIET FILE`: of the calls so many are questions,
and the last QUIET come slowly.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from examples.demo import api
from examples.demo.tasks import count_click, reputation

PAGES = ["/", "/pricing", "/docs", "/blog", "/about", "/jobs"]
DOMAINS = 2000
#: Seconds between two calls of the quiet end, in which batches do not fill up by themselves.
QUIET_PAUSE = 1 / 30
RESULT_TIMEOUT = 60.0


@dataclass
class Sent:
    """What one producer sent, and what it got back.

    Attributes:
        ids: The accepted calls of each task.
        clicks: How often each page was clicked.
        started: When the first call was sent (Unix time).
        rushed: When the rush was over, and the quiet end began.
        in_rush: Calls that were accepted until then.
        checked: Answers fetched and compared.
        wrong: What was wrong with some of them.
    """

    ids: dict[str, list[str]] = field(default_factory=lambda: {"count_click": [], "reputation": []})
    clicks: Counter[str] = field(default_factory=Counter)
    started: float = 0.0
    rushed: float = 0.0
    in_rush: int = 0
    checked: int = 0
    wrong: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes it to a file."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Sent:
        """Reads what `save` wrote."""
        return cls(**json.loads(path.read_text()))


def send(sent: Sent, seed: int, calls: int, questions: int, quiet: int) -> list[tuple[str, Any]]:
    """Sends the calls, the last `quiet` of them slowly.

    Returns:
        The URL and the `AsyncResult` of each question.
    """
    dice, asked = random.Random(seed), []
    sent.started = time.time()
    for i in range(calls):
        if i == calls - quiet:
            sent.rushed = time.time()
        if i >= calls - quiet:
            time.sleep(QUIET_PAUSE)
        if i * questions // calls != (i + 1) * questions // calls:
            url = f"https://shop-{dice.randrange(DOMAINS)}.example/cart"
            result = reputation.delay(url)
            asked.append((url, result))
            sent.ids["reputation"].append(result.id)
        else:
            page = dice.choice(PAGES)
            sent.ids["count_click"].append(count_click.delay(page=page).id)
            sent.clicks[page] += 1
    sent.rushed = sent.rushed or time.time()
    sent.in_rush = calls - quiet
    return asked


def check(sent: Sent, asked: list[tuple[str, Any]]) -> None:
    """Fetches the answer to each question, and notes those that are wrong or do not come."""
    for url, result in asked:
        try:
            answer = result.get(timeout=RESULT_TIMEOUT)
        except Exception as exc:
            sent.wrong.append(f"no answer for {url}: {exc!r}")
            continue
        sent.checked += 1
        if answer != api.rate(urlsplit(url).netloc):
            sent.wrong.append(f"the answer for {url} is {answer!r}")


def main(seed: str, calls: str, questions: str, quiet: str, path: str) -> None:
    """Sends, checks and reports."""
    sent = Sent()
    check(sent, send(sent, int(seed), int(calls), int(questions), int(quiet)))
    sent.save(Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
