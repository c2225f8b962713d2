"""The environment of celery-batches: a folder of its own beside ours."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).with_name("peer-requirements.txt")
FOLDER = ROOT / ".venv-peer"


def peer_python() -> Path:
    """Returns the interpreter of `.venv-peer`, which is made anew when its requirements change.

    Raises:
        CalledProcessError: pip could not install them.
    """
    python, stamp = FOLDER / "bin" / "python", FOLDER / "installed.txt"
    wanted = f"{sys.version}\n{REQUIREMENTS.read_text('utf-8')}"
    if not (stamp.exists() and stamp.read_text("utf-8") == wanted):
        print(f"installing celery-batches into {FOLDER.name}", file=sys.stderr)
        venv.create(FOLDER, clear=True, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq"]
        subprocess.run([*pip, "--disable-pip-version-check", "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted, "utf-8")
    return python
