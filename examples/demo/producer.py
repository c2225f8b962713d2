"""A caller: sends clicks and questions, fetches the answers, and reports what it knows.

The demo starts it as `python -m examples.demo.producer SEED CALLS QUESTIONS QUIET FILE`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from examples.demo import api
from examples.demo.tasks import count_click, reputation

PAGES = ["/", "/pricing", "/docs", "/blog", "/about", "/jobs"]
DOMAINS = 2000
#: Seconds between two calls of the quiet end.
QUIET_PAUSE = 1 / 30
RESULT_TIMEOUT = 60.0


@dataclass(frozen=True)
class Plan:
    """What is to be sent.

    Attributes:
        calls: All of them.
        questions: Those for the web API, evenly among the others, which are clicks.
        quiet: Those at the end that come slowly, so that the interval makes their batches due.
    """

    calls: int
    questions: int
    quiet: int

    @classmethod
    def of(cls, calls: int) -> Plan:
        """Returns the plan of a demo: every fifth call a question, every tenth at the quiet end."""
        return cls(calls, min(calls // 5, 4000), min(calls // 10, 400))

    def share(self, number: int, producers: int) -> Plan:
        """Returns what one of several producers has to send; `number` counts from 0."""
        parts = self.calls, self.questions, self.quiet
        return Plan(*((part + number) // producers for part in parts))

    def is_question(self, index: int) -> bool:
        """Whether a call is a question."""
        return index * self.questions // self.calls != (index + 1) * self.questions // self.calls


@dataclass
class Sent:
    """What one producer sent, and what it got back.

    Attributes:
        ids: The accepted calls of each task.
        clicks: How often each page was clicked.
        in_rush: How many calls of each task were sent as fast as possible.
        started: When the first call was sent (Unix time).
        rushed: When the last call of the rush had been accepted.
        checked: Answers fetched and compared.
        wrong: What was wrong with some of them.
    """

    ids: dict[str, list[str]] = field(default_factory=lambda: {"count_click": [], "reputation": []})
    clicks: Counter[str] = field(default_factory=Counter)
    in_rush: dict[str, int] = field(default_factory=dict)
    started: float = 0.0
    rushed: float = 0.0
    checked: int = 0
    wrong: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes it to a file."""
        path.write_text(json.dumps(vars(self)))

    @classmethod
    def load(cls, path: Path) -> Sent:
        """Reads what `save` wrote."""
        found = json.loads(path.read_text())
        return cls(**{**found, "clicks": Counter(found["clicks"])})


def send(sent: Sent, plan: Plan, seed: int) -> list[tuple[str, Any]]:
    """Sends the calls of a plan.

    Returns:
        The URL and the `AsyncResult` of each question.
    """
    dice, asked = random.Random(seed), []
    rush = plan.calls - plan.quiet
    sent.started = time.time()
    for index in range(plan.calls):
        if index >= rush:
            time.sleep(QUIET_PAUSE)
        if plan.is_question(index):
            url = f"https://shop-{dice.randrange(DOMAINS)}.example/cart"
            result = reputation.delay(url)
            sent.ids["reputation"].append(result.id)
            asked.append((url, result))
        else:
            page = dice.choice(PAGES)
            sent.ids["count_click"].append(count_click.delay(page=page).id)
            sent.clicks[page] += 1
        if index == rush - 1:
            sent.rushed = time.time()
            sent.in_rush = {task: len(ids) for task, ids in sent.ids.items()}
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
    check(sent, send(sent, Plan(int(calls), int(questions), int(quiet)), int(seed)))
    sent.save(Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
