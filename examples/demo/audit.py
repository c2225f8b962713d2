"""Holds what the producers sent against what the tasks wrote down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from examples.demo.ledger import Run
from examples.demo.producer import Sent
from examples.demo.tasks import FLUSH_EVERY, FLUSH_INTERVAL

TASKS = ("count_click", "reputation")
#: The server's clock says in whole milliseconds when a call began to wait.
ROUNDING = 0.002


@dataclass(frozen=True)
class Audit:
    """The evidence of one demo.

    Attributes:
        sent: What each producer sent and got back.
        runs: What the tasks wrote down.
        clicks: The clicks of each page, as the task counted them.
        tasks: Which tasks it looks at.
    """

    sent: Sequence[Sent]
    runs: list[Run]
    clicks: Counter[str]
    tasks: tuple[str, ...] = TASKS

    def of(self, task: str) -> Audit:
        """Returns the part of one task."""
        return replace(self, runs=[run for run in self.runs if run.task == task], tasks=(task,))

    def accepted(self) -> list[str]:
        """Returns the ids of the calls that Redis accepted."""
        return [call for sent in self.sent for task in self.tasks for call in sent.ids[task]]

    def executions(self) -> Counter[str]:
        """Returns how often each call was executed."""
        return Counter(call for run in self.runs for call in run.ids)

    def executed_once(self) -> int:
        """Returns how many accepted calls were executed exactly once."""
        executions = self.executions()
        return sum(executions[call] == 1 for call in self.accepted())

    @property
    def checked(self) -> int:
        """Answers that the producers fetched and compared."""
        return sum(sent.checked for sent in self.sent)

    @property
    def rush(self) -> float:
        """Seconds from the first call until the last producer was through with its rush."""
        return max(sent.rushed for sent in self.sent) - min(sent.started for sent in self.sent)

    @property
    def accept_rate(self) -> float:
        """Calls per second that were accepted in the rush."""
        return sum(sent.in_rush[task] for sent in self.sent for task in self.tasks) / self.rush

    @property
    def execute_rate(self) -> float:
        """Calls per second that were executed in the same time."""
        end = max(sent.rushed for sent in self.sent)
        return sum(len(run.ids) for run in self.runs if run.at <= end) / self.rush

    def faults(self) -> list[str]:
        """Says everything that is not as it must be."""
        wrong = [answer for sent in self.sent for answer in sent.wrong]
        if (asked := len(self.of("reputation").accepted())) != self.checked:
            wrong.append(f"{asked:,} answers were due, {self.checked:,} could be checked")
        lost = [fault for task in TASKS for fault in self.of(task)._lost_or_doubled(task)]
        return wrong + lost + self._untimely() + self._miscounted()

    def _lost_or_doubled(self, task: str) -> list[str]:
        accepted, executions = Counter(self.accepted()), self.executions()
        found = {
            "accepted twice": [call for call, times in accepted.items() if times > 1],
            "never executed": accepted.keys() - executions.keys(),
            "executed but never sent": executions.keys() - accepted.keys(),
            "executed twice": [call for call, times in executions.items() if times > 1],
        }
        return [
            f"{task}: {len(calls):,} calls {what}, e.g. {min(calls)}"
            for what, calls in found.items()
            if calls
        ]

    def _untimely(self) -> list[str]:
        """Says which batches were too large, or ran before they were due."""
        return [
            f"{run.task}: a batch of {len(run.ids)} calls after {run.waited:.3f} s"
            for run in self.runs
            if len(run.ids) > FLUSH_EVERY
            or (len(run.ids) < FLUSH_EVERY and run.waited < FLUSH_INTERVAL - ROUNDING)
        ]

    def _miscounted(self) -> list[str]:
        clicked = sum((sent.clicks for sent in self.sent), Counter[str]())
        return [
            f"{clicked[page]:,} clicks on {page}, but {self.clicks[page]:,} were counted"
            for page in sorted(clicked.keys() | self.clicks.keys())
            if clicked[page] != self.clicks[page]
        ]
