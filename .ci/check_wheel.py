"""Builds sdist and wheel, installs the wheel alone and loads every Lua script from it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

LOAD_SCRIPTS = """
import json
import redis_batches
from redis_batches.driver.scripts import load_scripts
from redis_batches.driver.sources import folder
load_scripts()
scripts = [str(path.relative_to(folder())) for path in folder().rglob("*.lua")]
print(json.dumps({"file": redis_batches.__file__, "scripts": scripts}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="check-wheel-") as name:
        folder = Path(name).resolve()
        loaded = load_from(install(build_wheel(folder), folder), folder)
    if not Path(loaded["file"]).is_relative_to(folder):
        sys.exit(f"not the installed wheel was imported, but {loaded['file']}")
    expected = {str(path.relative_to(ROOT / "lua")) for path in (ROOT / "lua").rglob("*.lua")}
    if set(loaded["scripts"]) != expected:
        sys.exit(f"lua/ has {sorted(expected)}, the wheel {sorted(loaded['scripts'])}")
    print(f"The wheel loads its {len(expected)} scripts.")


def build_wheel(folder: Path) -> Path:
    run("-m", "build", "--no-isolation", "--outdir", folder, ROOT, python=sys.executable)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    run("-m", "venv", "--without-pip", folder / "venv", python=sys.executable)
    python = folder / "venv" / "bin" / "python"
    pip = ["-m", "pip", "--python", python, "install", "-qq"]
    run(*pip, "-c", ROOT / "constraints.txt", wheel, python=sys.executable)
    return python


def load_from(python: Path, folder: Path) -> dict:
    return json.loads(run("-I", "-c", LOAD_SCRIPTS, python=python, cwd=folder))


def run(*arguments: object, python: object, cwd: Path | None = None) -> str:
    """What the command printed; if it fails, all of that and the end of this program."""
    command = [str(part) for part in (python, *arguments)]
    result = subprocess.run(
        command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout}")
    return result.stdout


if __name__ == "__main__":
    main()
