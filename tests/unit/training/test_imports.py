"""Imports without torch, transformers or peft: they work, or say in one line what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nola_codec.training
from nola_codec import errors
from nola_codec.errors import NolaError

ROOT = Path(__file__).resolve().parents[3]
NAMES = nola_codec.training.__all__


def python(code: str, *, without: str) -> str:
    """Run a program in which a package cannot be imported; returns what it prints."""
    program = f"import sys\nsys.modules[{without!r}] = None\n{code}"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    return result.stdout


CATCH = """
try:
    {statement}
except nola_codec.NolaError as error:
    print(isinstance(error, ImportError), error.code, error)
"""


INTEGRATIONS = ("peft_conversion", "task_text")


def test_without_torch() -> None:
    modules = ["training", "training.task", *(f"integrations.{name}" for name in INTEGRATIONS)]
    users = ["training", "training", *(f"integrations.{name}" for name in INTEGRATIONS)]
    code = "import nola_codec, nola_codec.integrations\n"
    code += "".join(CATCH.format(statement=f"import nola_codec.{module}") for module in modules)
    lines = python(code, without="torch").splitlines()
    wanted = "True needs-torch nola_codec.{} needs torch: pip install 'nola-codec[torch]'"
    assert lines == [wanted.format(user) for user in users]


@pytest.mark.parametrize(
    ("module", "package"), [("transformers", "transformers"), ("peft", "peft"), ("diffusers", "diffusers")]
)
def test_without_the_library(module: str, package: str) -> None:
    statement = f"import nola_codec.integrations.{module}"
    said = python("import nola_codec" + CATCH.format(statement=statement), without=package)
    extra = "diffusers" if package == "diffusers" else "peft"
    user = f"nola_codec.integrations.{module}"
    assert said == f"True needs-{package} {user} needs {package}: pip install 'nola-codec[{extra}]'\n"


def test_transformers_and_peft_are_imported_when_used() -> None:
    code = (
        f"from nola_codec.training import {', '.join(NAMES)}\n"
        "print({'transformers', 'peft'} & {name for name, module in sys.modules.items() if module is not None})\n"
    )
    assert python(code, without="nothing_of_this_name") == "set()\n"


def test_all_names_are_there() -> None:
    assert nola_codec.training.__all__ == sorted(nola_codec.training.__all__)
    assert set(nola_codec.training.__all__) <= set(dir(nola_codec.training))
    for name in NAMES:
        assert getattr(nola_codec.training, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'ensemble'"):
        nola_codec.training.ensemble  # noqa: B018


def test_a_package_that_is_there() -> None:
    errors.require_torch("this")
    with pytest.raises(NolaError, match=r"^this needs no_such_package: pip install 'nola-codec\[some\]'$") as caught:
        errors.require_package("this", "no_such_package", "some")
    assert caught.value.code == "needs-no_such_package"
