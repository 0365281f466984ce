"""Read and match importances: numbers by which a user says how much each tensor matters."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nola_codec.adapters.dialects.peft_base import module_path
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.rendering import list_first
from nola_codec.stores.dtypes import FLOAT_DTYPES, to_float64
from nola_codec.stores.files import read_json
from nola_codec.stores.safetensors_io import SafetensorsFile

_SHOWN = 5


def read_importance(path: str | os.PathLike[str]) -> dict[str, float]:
    """Read numbers by name from a JSON object, or from a safetensors file of one-element tensors.

    Raises:
        EncodeError: ``importance``: The file is neither of the two.
        AdapterError: The safetensors file cannot be read.
    """
    if Path(path).suffix == ".safetensors":
        return _from_safetensors(path)
    try:
        found = read_json(Path(path))
    except AdapterError as error:
        raise EncodeError(str(error), code="importance") from error
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in found.values()):
        raise EncodeError("expected an object of names and numbers", code="importance", where=str(path))
    try:
        return {name: float(value) for name, value in found.items()}
    except OverflowError as error:
        raise EncodeError("expected numbers of a float's range", code="importance", where=str(path)) from error


def _from_safetensors(path: str | os.PathLike[str]) -> dict[str, float]:
    """Read the numbers of a safetensors file of one-element tensors."""
    numbers = {}
    with SafetensorsFile(Path(path)) as file:
        for name, info in file.tensors.items():
            if info.dtype not in FLOAT_DTYPES or math.prod(info.shape) != 1:
                message = f"expected one floating-point number, found {info.dtype} {list(info.shape)}"
                raise EncodeError(message, code="importance", where=f"{path}: {name}")
            numbers[name] = float(to_float64(file.read(name)).reshape(-1)[0])
    return numbers


def match_importance(names: Sequence[str], importance: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Return the importance of each record, 1 for those that are not named.

    Args:
        names: The names of modules and vectors as the adapter writes them.
        importance: A number for each module name, with or without ``base_model.model.`` and ``.weight``, or for a
            pattern with ``*`` and ``?``. If several fit a module, the last one counts.

    Returns:
        float64 (names,).

    Raises:
        EncodeError: ``importance``: A name fits no module, a number is negative or not finite, or none is above 0.
    """
    paths = [module_path(name).removesuffix(".weight") for name in names]
    result = np.ones(len(names))
    unknown = []
    for pattern, number in importance.items():
        if not (math.isfinite(number) and number >= 0):
            raise EncodeError(f"expected a number of at least 0, found {number}", code="importance", where=pattern)
        wanted = module_path(pattern).removesuffix(".weight")
        fits = [i for i, path in enumerate(paths) if path == wanted or fnmatchcase(path, wanted)]
        if not fits:
            unknown.append(pattern)
        result[fits] = number
    if unknown:
        raise EncodeError(
            f"importance is given for tensors that the adapter does not have: {list_first(unknown, _SHOWN)}",
            code="importance",
        )
    if len(names) and not result.any():
        raise EncodeError("every tensor has importance 0", code="importance")
    return result
