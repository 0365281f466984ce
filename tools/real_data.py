"""Find the real adapters and texts that the demo, the benchmarks and the experiments use.

`examples/` of the repository always has two adapters and the rows of text that the README's figures use. More data may
lie in the folder that the environment variable NOLA_DATA names, else in `../shared/data`: adapters in `lora/`, texts in
`sets/`. Functions here raise SystemExit with one line that says what is missing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
CARRIED_ADAPTERS = ("gptneo125m_movies", "smollm2_e2e")


def cache_dir() -> Path:
    """The folder where base models and results are kept between runs: $NOLA_CACHE, else `.cache/`."""
    return Path(os.environ.get("NOLA_CACHE") or ROOT / ".cache").resolve()


def more_data() -> Path | None:
    """The folder of further adapters and texts, or None if there is none."""
    folder = Path(os.environ.get("NOLA_DATA") or ROOT.parent / "shared" / "data").resolve()
    return folder if folder.is_dir() else None


def adapters() -> dict[str, Path]:
    """Every adapter by its short name: the carried ones, then those of the further data (folders and lone files)."""
    found = {name: EXAMPLES / name for name in CARRIED_ADAPTERS if (EXAMPLES / name).is_dir()}
    more = more_data()
    if more is None:
        print("only the adapters of examples/: NOLA_DATA names no folder with more", file=sys.stderr)
        return found
    for path in sorted((more / "lora").iterdir()):
        if path.is_dir() and len(list(path.glob("*.safetensors"))) > 1:
            found |= {f"{path.name}/{file.name.split('_')[0]}": file for file in sorted(path.glob("*.safetensors"))}
        else:
            found.setdefault(path.stem if path.is_file() else path.name, path)
    return found


def adapter(name: str) -> Path:
    """The adapter of this short name."""
    found = adapters() if name not in CARRIED_ADAPTERS else {name: EXAMPLES / name}
    if name not in found:
        sys.exit(f"no adapter {name}: set NOLA_DATA to a folder that has lora/{name}")
    return found[name]


def text_set(name: str) -> Path:
    """The folder or file `name` of the further data's `sets/`."""
    more = more_data()
    if more is None or not (more / "sets" / name).exists():
        sys.exit(f"no text set {name}: set NOLA_DATA to a folder that has sets/{name}")
    return more / "sets" / name
