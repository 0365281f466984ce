"""Add a whole delta to a weight in memory (`spec/conventions.md`, "delta_W and merging").

    delta_W = (lora_B @ lora_A) * 2^(eB + eA) * scaling       float64: the product is exact, the scaling rounds once
    merged  = round_dtype(float64(W) + delta_W)               one sum, one rounding

The product of the int16 factors is exact in float64, since its sums stay below 2^53 for any rank below 2^22. A merge on
disk computes the same bits a few rows at a time, by `deltas` and `rounding`.
"""

from __future__ import annotations

from typing import Any

from nola_codec.arrays import Array, Arrays, TorchArrays
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.errors import AdapterError
from nola_codec.kernels.triton.availability import uses_triton
from nola_codec.model.records import CodedKind


def delta_weight(factors: DecodedRecord, kind: CodedKind, xp: Arrays) -> Array:
    """Return delta_W in float64, in the shape of a PyTorch weight.

    Args:
        factors: lora_B (out, r) and lora_A (r, in), arrays of `xp`.
        kind: The kind of the record.
        xp: The arrays that the factors are made of.

    Returns:
        (out, in) for a linear layer, (out, in, kh, kw) for a convolution, (vocab, dim) for an embedding. It is not
        transposed for `fan_in_fan_out`.
    """
    lora_B, lora_A = factors.sides
    delta = xp.cast(lora_B, "float64") @ xp.cast(lora_A, "float64")
    delta *= 2.0 ** (factors.exponents[0] + factors.exponents[1])  # in place: a product may be large
    delta *= kind.scaling
    if kind.layout == "embedding":
        return delta.swapaxes(0, 1)
    if kind.layout == "conv":
        return delta.reshape((kind.product_shape[0], *kind.stored_shapes[1][1:]))
    return delta


def merge_factors(weight: Any, factors: DecodedRecord, kind: CodedKind, xp: Arrays, *, transposed: bool) -> None:
    """Add the delta of a pair of factors to a torch weight in place, rounding once to the weight's dtype.

    On a device with Triton the delta is never stored: `kernels.triton.merge` makes it as products of int8 matrices.

    Args:
        weight: The weight, of a float dtype.
        factors: lora_B (out, r) and lora_A (r, in), arrays of `xp`.
        kind: The kind of the record.
        xp: The arrays that the factors are made of.
        transposed: True if the weight is stored (in, out).

    Raises:
        AdapterError: ``overflow``: the sum is too large for the dtype. The weight does not change then.
    """
    made = _merged_in_triton(weight, factors, kind, xp, transposed=transposed)
    if made is None:
        delta: Any = delta_weight(factors, kind, xp)
        delta = xp.asarray(delta) if isinstance(xp, TorchArrays) else _from_numpy(delta)
        made = merged_tensor(weight, (delta.swapaxes(0, 1) if transposed else delta).to(weight.device))
    _replace(weight, *made)


def merge_tensor(weight: Any, delta: Any) -> None:
    """Add delta_W (float64, torch) to a torch weight in place, rounding once to the weight's dtype.

    Raises:
        AdapterError: ``overflow``: the sum is too large for the dtype. The weight does not change then.
    """
    _replace(weight, *merged_tensor(weight, delta))


def merged_tensor(weight: Any, delta: Any) -> tuple[Any, Any]:
    """Return the sum of a torch weight and delta_W, rounded once, without reading anything back from the device.

    Args:
        weight: The weight, of a float dtype.
        delta: float64, with as many elements as the weight, on its device.

    Returns:
        The merged weight, in the weight's shape and dtype, and a bool scalar on the device: True if it is finite.
    """
    merged = round_to(weight.double() + (delta.reshape(weight.shape) + 0.0), weight.dtype)  # a zero delta is +0
    return merged, merged.isfinite().all()


def _replace(weight: Any, merged: Any, is_finite: Any) -> None:
    if not bool(is_finite):
        raise AdapterError(f"the merged weight is not finite in {weight.dtype}", code="overflow")
    weight.copy_(merged)


def _from_numpy(array: Any) -> Any:
    import torch

    return torch.from_numpy(array)


def _merged_in_triton(
    weight: Any, factors: DecodedRecord, kind: CodedKind, xp: Arrays, *, transposed: bool
) -> tuple[Any, Any] | None:
    """Return what `merged_tensor` returns, or None if the kernel cannot make it."""
    if not isinstance(xp, TorchArrays) or xp.device != weight.device or not uses_triton(weight.device.type):
        return None
    import torch

    from nola_codec.kernels.triton import merge

    dtypes = {torch.float32: merge.FLOAT32, torch.float16: merge.FLOAT16, torch.bfloat16: merge.BFLOAT16}
    left, right = factors.sides
    if (kind.layout == "embedding") != transposed:
        left, right = right.T, left.T
    if weight.dtype not in dtypes or not 0 < left.shape[1] < merge.MAX_RANK:
        return None
    own = weight.detach().contiguous()
    merged = torch.empty_like(own)
    faults = torch.zeros(1, dtype=torch.int32, device=weight.device)
    power, scaling = (
        torch.full((1,), value, dtype=torch.float64, device=weight.device)
        for value in (2.0 ** (factors.exponents[0] + factors.exponents[1]), kind.scaling)
    )
    target = merged.view(torch.int16) if weight.dtype == torch.bfloat16 else merged
    merge.merge(own, target, left.contiguous(), right.contiguous(), faults, power, scaling, dtypes[weight.dtype])
    return merged, faults[0] == 0


def round_to(values: Any, dtype: Any) -> Any:
    """Round float64 torch values to a float dtype, to nearest even, in one rounding.

    PyTorch goes through float32 on the way to 16 bits, and so rounds twice. If the first step rounds to odd instead,
    the second gives the right result (Boldo and Melquiond, 2008).
    """
    import torch

    if dtype in (torch.float64, torch.float32):
        return values.to(dtype)
    single = values.float()
    back = single.double()
    bits = single.view(torch.int32)
    step = torch.where(back.abs() > values.abs(), -1, 1).to(torch.int32)
    odd = torch.where((back != values) & (bits & 1 == 0), bits + step, bits)
    return odd.view(torch.float32).to(dtype)
