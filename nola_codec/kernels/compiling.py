"""Compile the C sources into one library that ctypes loads; `hatch_build.py` and `tools/build_kernels.py` call this.

It needs nothing but Python, because a build has no NumPy. It runs with gcc and clang on 64-bit machines whose integers
are little-endian; MSVC is not supported. Elsewhere the package works without kernels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess  # functions import what only a build needs: the loader imports this module

FOLDER = Path(__file__).resolve().parent
LIBRARY_NAME = "_kernels.so"

_FLAGS = ("-std=c99", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra")
_VARIANT_FLAGS = {
    "generic": (),
    "avx2": ("-mavx2", "-mbmi2", "-mtune=haswell"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mbmi2", "-mprefer-vector-width=512"),
}
VARIANTS = tuple(_VARIANT_FLAGS)
"""All variants, from the most general to the most special; `nola_supports` in c/library.c counts them so."""


class CannotCompile(Exception):
    """There is no compiler, or it failed; the message is one line."""


def variants() -> tuple[str, ...]:
    """Return the variants that are compiled for this machine, in the order of `VARIANTS`."""
    import platform

    return VARIANTS if platform.machine().lower() in ("x86_64", "amd64") else ("generic",)


def sources_digest(folder: Path = FOLDER) -> str | None:
    """Return the SHA-256 of the C sources and the flags in hexadecimal, or None if the sources are not there."""
    files = sorted((folder / "c").glob("*.[ch]"))
    if not files:
        return None
    import hashlib

    digest = hashlib.sha256(repr((_FLAGS, _VARIANT_FLAGS)).encode())
    for file in files:
        content = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def is_current(folder: Path = FOLDER) -> bool:
    """Return True if the library is there and was made of the sources that are there now."""
    library, digest = folder / LIBRARY_NAME, sources_digest(folder)
    return library.is_file() and digest is not None and digest.encode() in library.read_bytes()


def compile_library(folder: Path = FOLDER, extra_flags: Sequence[str] = ()) -> Path:
    """Compile `c/*.c` of a folder into its library, which takes the place of an older one in one step.

    Args:
        folder: The folder of the package `kernels`.
        extra_flags: Further flags, such as those of sanitizers.

    Returns:
        The path of the library.

    Raises:
        CannotCompile: There is no compiler, it failed, or this kind of machine is not supported.
    """
    import shutil
    import tempfile

    if sys.byteorder != "little" or sys.maxsize <= 1 << 32 or sys.platform == "win32":
        raise CannotCompile("this kind of machine is not supported")
    compiler = _find_compiler()
    digest = sources_digest(folder)
    if digest is None:
        raise CannotCompile(f"there are no C sources in {folder / 'c'}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        commands, objects = [], []
        for variant in variants():
            for source in sorted((folder / "c").glob("*.c")):
                made = work / f"{source.stem}.{variant}.o"
                objects.append(str(made))
                defined = (f"-DNOLA_VARIANT={variant}", f'-DNOLA_SOURCES="{digest}"')
                commands.append([*compiler, *_FLAGS, *_VARIANT_FLAGS[variant], *defined, *extra_flags,
                                 "-c", str(source), "-o", str(made)])  # fmt: skip
        _run_all(commands)
        made = work / LIBRARY_NAME
        _run_all([[*compiler, "-shared", *extra_flags, *objects, "-o", str(made)]])
        library = folder / LIBRARY_NAME
        beside = folder / f".{LIBRARY_NAME}.{os.getpid()}"
        try:
            shutil.copy(made, beside)
            beside.replace(library)
        finally:
            beside.unlink(missing_ok=True)
    return library


def _find_compiler() -> list[str]:
    import shlex
    import shutil

    chosen = os.environ.get("CC")
    names = [chosen] if chosen else ["cc", "gcc", "clang"]
    for name in names:
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    raise CannotCompile(f"there is no C compiler ({', '.join(names)})")


def _run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run commands, as many at once as there are processors."""
    import subprocess

    waiting = list(reversed(commands))
    running: list[tuple[str, subprocess.Popen[str]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                command = waiting.pop()
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                running.append((command[0], process))
            name, process = running.pop(0)
            _, errors = process.communicate()
            if process.returncode:
                lines = [line for line in errors.splitlines() if "error" in line.lower()] or errors.splitlines()
                reason = lines[0] if lines else f"exit status {process.returncode}"
                raise CannotCompile(f"the C compiler failed: {name}: {reason}")
    finally:
        for _, process in running:
            process.kill()
            process.communicate()
