"""The build hook of hatchling: compiles the kernels into the wheel, or leaves them out where that is not possible."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class KernelHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Adds the compiled library to a wheel, which is then for one platform and for every Python 3."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; without a compiler the wheel is pure Python, and NumPy computes."""
        path = Path(self.root) / "nola_codec" / "kernels" / "compiling.py"
        spec = importlib.util.spec_from_file_location("compiling", path)
        assert spec is not None
        assert spec.loader is not None
        compiling = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compiling)
        try:
            library = compiling.compile_library()
        except compiling.CannotCompile as e:
            self.app.display_warning(f"nola-codec is built without its kernels, and NumPy will compute: {e}")
            return
        build_data["artifacts"].append(library.relative_to(self.root).as_posix())
        build_data["pure_python"] = False
        # The library is called through the C ABI, so it does not depend on the version of Python.
        plain = next(tag for tag in platform_tags() if "manylinux" not in tag and "musllinux" not in tag)
        build_data["tag"] = f"py3-none-{plain}"
