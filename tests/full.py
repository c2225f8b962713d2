"""What takes too long for each change: the whole of it is played by hand, or at night.

    sh run.sh full
    sh run.sh full mutants chaos

Each part ends with a line of its own; one that fails does not stop the others. Nothing else may run
meanwhile: what waits for a machine that is too busy fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from redis_batches.testing.server import EmbeddedServer

#: By name: arguments of Python; `URL` is a private server's.
PARTS = {
    "simulation": ("-m", "tests.properties.simulation", "--seeds", "5000", "--url", "URL"),
    "reporting": ("-m", "tests.properties.reporting", "--seeds", "2000", "--url", "URL"),
    "fuzz": ("-m", "pytest", "-q", "tests/properties/test_fuzz.py"),
    "poison": ("-m", "tests.properties.poison"),
    "servers": ("-m", "tests.servers"),
    "mutants": ("-m", "tests.mutants", "--jobs", "2"),
    "chaos": ("-m", "tests.chaos", "--minutes", "30", "--every", "3"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Plays the parts that are named, or all; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser("sh run.sh full", description="Plays the long tests.")
    # `choices` would refuse that none is named.
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    named = parser.parse_args(argv).parts
    if unknown := {*named} - {*PARTS}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    lines, failed = [], False
    for name in named or PARTS:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        status = play(PARTS[name])
        failed |= status != 0
        verdict = f"FAILED ({status})" if status else "passed"
        lines.append(f"{name:12}{verdict:14}{(time.monotonic() - began) / 60:6.1f} min")
    print("\n".join(["", *lines]))
    return int(failed)


def play(arguments: Sequence[str]) -> int:
    """Runs one part, with a private server; returns its exit status."""
    with EmbeddedServer() as server:
        given = [server.url if argument == "URL" else argument for argument in arguments]
        environment = {**os.environ, "FUZZ": "100000"}
        return subprocess.run([sys.executable, *given], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
