"""What a command may load before it has done its work: modules, since times depend on the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nola_codec.api.encoding import encode
from nola_codec.lazy import LazyTable, lazy_names

RUN = """
import sys
before = set(sys.modules)
from nola_codec.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""
HEAVY = {"asyncio", "email", "http", "importlib.metadata", "multiprocessing", "rich", "ssl", "torch", "urllib.request",
         "zipfile", "filelock", "huggingface_hub", "fsspec"}  # fmt: skip
"""Modules that no command below needs, and that take from 2 ms to seconds to load."""

FILE = {"click", "msgpack", "zstandard"}
"""The packages that reading a header needs: NumPy would take longer than all the rest."""
HEADER = {
    "adapters", "api", "array_types", "arrays", "basis", "cli", "container", "decoder", "entropy", "errors", "kernels",
    "lazy",
    "model", "prng", "quant", "remote", "rendering", "sizes", "stores", "version",
}  # fmt: skip
"""The layers that reading a header needs."""
DECODED = HEADER | {"parallel", "progress", "references"}

COMMANDS = {
    "--version": ({"cli", "errors", "lazy", "rendering", "version"}, {"click"}),
    "inspect FILE": (HEADER | {"encoder"}, FILE),  # its verdict is the encoder's
    "inspect FILE --json --tensors": (HEADER, FILE),
    "verify FILE -q": (DECODED, FILE | {"numpy", "threadpoolctl"}),
    "decode FILE -o OUT -q": (DECODED, FILE | {"numpy", "safetensors", "threadpoolctl"}),
}
"""For each command the layers and the packages of others that it may load."""


@pytest.fixture(scope="module")
def nola(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("startup") / "a.nola"
    encode(Path(__file__).resolve().parents[2] / "examples" / "gptneo125m_movies", path, size="10KB")
    return path


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules that a new process loads."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split())


def layers(modules: set[str]) -> set[str]:
    return {name.split(".")[1] for name in modules if name.startswith("nola_codec.")}


def test_importing_the_package_loads_next_to_nothing() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nimport nola_codec\nprint(*set(sys.modules) - before, file=sys.stderr)"
    )
    modules = loaded(code)
    assert layers(modules) == {"lazy", "version"}
    assert not {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"nola_codec"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_loads_what_it_needs(command: str, nola: Path, tmp_path: Path) -> None:
    line = [{"FILE": str(nola), "OUT": str(tmp_path / "out")}.get(word, word) for word in command.split()]
    modules = loaded(RUN, *line)
    own, packages = COMMANDS[command]
    assert layers(modules) <= own
    assert not modules & HEAVY
    # Compiled packages register names of their own, such as `_cython_3_0`, and `cython_runtime`.
    foreign = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"nola_codec", "cython_runtime"}
    assert {name for name in foreign if not name.startswith("_")} <= packages


@pytest.mark.parametrize("command", ["inspect FILE", "decode FILE -o OUT -q"])
def test_only_the_dialect_of_the_file_is_loaded(command: str, nola: Path, tmp_path: Path) -> None:
    line = [{"FILE": str(nola), "OUT": str(tmp_path / "out")}.get(word, word) for word in command.split()]
    modules = loaded(RUN, *line)
    start = "nola_codec.adapters."
    dialects = {name.removeprefix(start + "dialects.") for name in modules if name.startswith(start + "dialects.")}
    assert "peft" in dialects
    others = {"peft_seeded", "peft_diagonals", "peft_lycoris", "diffusers", "gguf", "kohya", "loralib", "mistral",
              "mlx", "numbered", "parameters", "torchtune", "weight_changes"}  # fmt: skip
    assert not dialects & others
    assert not {name for name in modules if name.startswith((start + "families", start + "reading"))}


def test_an_interrupted_import_leaves_no_traceback() -> None:
    code = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "nola_codec.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("nola_codec", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "nola-codec: interrupted\n")


def test_a_package_offers_names_that_it_has_not_imported() -> None:
    get, names = lazy_names("nola_codec", {"NolaError": "errors"})
    assert get("NolaError").__module__ == "nola_codec.errors"
    assert "NolaError" in names()
    with pytest.raises(AttributeError, match="module 'nola_codec' has no attribute 'Sesame'"):
        get("Sesame")


def test_a_lazy_table_imports_a_value_once_it_is_asked_for() -> None:
    table: LazyTable[object] = LazyTable("nola_codec", {"error": "errors:NolaError", "absent": "nowhere:Nothing"})
    assert list(table) == ["error", "absent"]
    assert "absent" in table
    assert table["error"] is table["error"]
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        table["absent"]
    with pytest.raises(KeyError):
        table["sesame"]
    table["own"] = 1
    del table["absent"]
    assert dict(table) == {"error": table["error"], "own": 1}


def test_numpy_is_loaded_at_the_first_use_of_one_of_its_names() -> None:
    code = (
        "import sys\nfrom nola_codec.lazy import numpy as np\nbefore = 'numpy' in sys.modules\n"
        "made = np.arange(3)\nimport numpy\n"
        "print(before, made.sum() == 3, np.ndarray is numpy.ndarray, np.random is numpy.random, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stderr.split() == ["False", "True", "True", "True"]
