"""Compile the kernels in place, unless the library was made of the same sources: `python tools/build_kernels.py`.

Without a C compiler it says so and succeeds, because the package then works on NumPy. `--force` compiles always.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

COMPILING = Path(__file__).resolve().parents[1] / "nola_codec" / "kernels" / "compiling.py"


def main() -> int:
    """Compile if needed, and say in one line what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="compile even if the library fits its sources")
    arguments = parser.parse_args()
    spec = importlib.util.spec_from_file_location("compiling", COMPILING)
    assert spec is not None
    assert spec.loader is not None
    compiling = importlib.util.module_from_spec(spec)  # by its path: the package needs NumPy, and this does not
    spec.loader.exec_module(compiling)
    if not arguments.force and compiling.is_current():
        return 0
    try:
        print(f"compiled {compiling.compile_library()}")
    except compiling.CannotCompile as e:
        print(f"no kernels, NumPy computes: {e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
