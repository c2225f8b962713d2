"""Holds what the producers sent against what the tasks wrote down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from examples.demo.ledger import Run
from examples.demo.producer import Sent
from examples.demo.tasks import FLUSH_EVERY, FLUSH_INTERVAL

#: The clocks of a request and of its run are one clock, read in whole milliseconds.
ROUNDING = 0.002


@dataclass(frozen=True)
class Audit:
    """The evidence of one demo.

    Attributes:
        sent: What each producer sent and got back.
        runs: What the tasks wrote down.
        clicks: The clicks of each page, as counted by the task.
    """

    sent: Sequence[Sent]
    runs: Sequence[Run]
    clicks: Counter[str]

    def accepted(self, task: str) -> list[str]:
        """Ids of the calls of a task that Redis accepted."""
        return [call for sent in self.sent for call in sent.ids[task]]

    def executions(self, task: str) -> Counter[str]:
        """How often each call of a task was executed."""
        return Counter(call for run in self.runs_of(task) for call in run.ids)

    def runs_of(self, task: str) -> list[Run]:
        """The batches of one task."""
        return [run for run in self.runs if run.task == task]

    def executed_once(self, task: str) -> int:
        """How many accepted calls of a task were executed exactly once."""
        executions = self.executions(task)
        return sum(executions[call] == 1 for call in self.accepted(task))

    @property
    def seconds(self) -> float:
        """How long the rush lasted."""
        return max(sent.rushed for sent in self.sent) - min(sent.started for sent in self.sent)

    @property
    def accept_rate(self) -> float:
        """Calls per second that the producers got rid of, in the rush."""
        return sum(sent.in_rush for sent in self.sent) / self.seconds

    @property
    def execute_rate(self) -> float:
        """Calls per second that the workers executed, in the same seconds."""
        end = max(sent.rushed for sent in self.sent)
        return sum(len(run.ids) for run in self.runs if run.at <= end) / self.seconds

    @property
    def checked(self) -> int:
        """Answers that the producers fetched and compared."""
        return sum(sent.checked for sent in self.sent)

    def faults(self) -> list[str]:
        """Says everything that is not as it must be."""
        faults = [wrong for sent in self.sent for wrong in sent.wrong]
        for task in ("count_click", "reputation"):
            accepted, executions = Counter(self.accepted(task)), self.executions(task)
            for what, found in (
                ("accepted twice", [call for call, times in accepted.items() if times > 1]),
                ("never executed", accepted.keys() - executions.keys()),
                ("executed but never sent", executions.keys() - accepted.keys()),
                ("executed twice", [call for call, times in executions.items() if times > 1]),
            ):
                if found:
                    faults.append(f"{task}: {len(found):,} calls {what}, e.g. {min(found)}")
        for run in self.runs:
            if len(run.ids) > FLUSH_EVERY:
                faults.append(f"{run.task}: a batch of {len(run.ids)} calls")
            if not run.full and run.waited < FLUSH_INTERVAL - ROUNDING:
                faults.append(f"{run.task}: {len(run.ids)} calls ran after {run.waited:.3f} s")
        clicked = sum((sent.clicks for sent in self.sent), Counter[str]())
        for page in sorted(clicked.keys() | self.clicks.keys()):
            if clicked[page] != self.clicks[page]:
                faults.append(f"{clicked[page]:,} clicks on {page}, {self.clicks[page]:,} counted")
        if self.checked != len(self.accepted("reputation")):
            faults.append(f"only {self.checked:,} answers could be checked")
        return faults
