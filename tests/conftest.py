"""Fixtures for what lies outside the repository, and the settings every test runs under."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a hub; read when huggingface_hub is imported
# Each worker of xdist has a processor of its own. The models of the tests are so small that further threads of PyTorch
# and BLAS only wait for each other, and they wait at full load. The variable is read when these libraries are imported,
# by the workers and by the processes that tests start. Tests of threads set the number that they need.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("here", deadline=None)  # a loaded machine is no failure
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Further real data, with adapters in `lora/` and texts in `sets/`: $NOLA_DATA, else `../shared/data`."""
    path = Path(os.environ.get("NOLA_DATA") or ROOT.parent / "shared" / "data").resolve()
    if not path.is_dir():
        pytest.skip(f"no further data at {path} (set NOLA_DATA)")
    return path


@pytest.fixture(scope="session")
def examples() -> Path:
    """The real data that the repository carries: two adapters and rows of text."""
    return ROOT / "examples"


@pytest.fixture(scope="session")
def real_adapter(examples: Path, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Returns the path of a real adapter by its name: one of `examples/`, else one of the further data."""

    def find(name: str) -> Path:
        if (examples / name).is_dir():
            return examples / name
        further: Path = request.getfixturevalue("shared_data")
        return further / "lora" / name

    return find


@pytest.fixture(scope="session")
def smollm2_base() -> Path:
    """A Transformers directory of SmolLM2-135M-Instruct, made once into $NOLA_CACHE or `.cache/`."""
    made = subprocess.run([sys.executable, ROOT / "tools" / "base_model.py"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no base model: {made.stderr.strip()}")
    return Path(made.stdout.strip())
