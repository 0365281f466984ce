"""Files that were written once and decode to the same tensors for ever."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from kernel_paths import PATHS
from nola_forge import GOLDEN, golden, manifest, reference, reference_answers, verify

from nola_codec.arrays import NUMPY, TorchArrays
from nola_codec.container.reader import open_container
from nola_codec.model.quantizers import Trellis
from nola_codec.quant.trellis import TRELLISES
from nola_codec.references.finding import open_decoder

FILES = manifest()


@pytest.mark.parametrize("name", FILES)
def test_file_is_the_one_that_was_written(name: str) -> None:
    data = golden(name.removesuffix(".nola"))
    assert (len(data), hashlib.sha256(data).hexdigest()) == (FILES[name]["bytes"], FILES[name]["sha256"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("path", PATHS)
def test_package_decodes_to_the_same_tensors(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_KERNELS", path)
    data = golden(name.removesuffix(".nola"))
    with open_container(data) as container:
        assert container.header.decoded_sha256.hex() == FILES[name]["factors_sha256"]
        header = container.header
        others = {record.name for record in (*header.raw, *header.drawn)}
        assert {f"{record.name}.exponents" for record in header.coded} | others <= FILES[name]["tensors"].keys()
    for xp in (NUMPY, TorchArrays()):
        verify(data, xp=xp)


@pytest.mark.parametrize("name", FILES)
def test_reference_decoder_gives_the_same_tensors(name: str) -> None:
    data = golden(name.removesuffix(".nola"))
    top, tensors, digest = reference().decode(data, dict(reference_answers()))
    assert digest == FILES[name]["factors_sha256"]
    with open_container(data) as container:
        decoder = open_decoder(container, NUMPY, GOLDEN)
        for index, decoded in decoder.decode():
            record = decoder.header.coded[index]
            assert tuple(tensors[f"{record.name}.exponents"]) == decoded.exponents
            parts = ("lora_B", "lora_A") if len(decoded.sides) == 2 else ("vector",)
            for part, made in zip(parts, decoded.sides, strict=True):
                assert tensors[f"{record.name}.{part}"].tolist() == made.tolist()
        for key, tensor in decoder.carried_tensors():
            assert tensors[key].tobytes() == tensor.data
    assert len(tensors) == sum(1 + len(r["sides"]) for r in top["coded"]) + len(top["raw"]) + len(top["drawn"])


def test_the_set_covers_the_format() -> None:
    """Each basis, entropy codec, type of quantizer, layout, split and dtype choice occurs."""
    seen: dict[str, set[Any]] = {}

    def see(what: str, value: Any) -> None:
        seen.setdefault(what, set()).add(value)

    for name in FILES:
        with open_container(golden(name.removesuffix(".nola"))) as container:
            header = container.read_units()
            assert container.count_units() == tuple(record.units for record in header.coded)
            see("streams shared", len({r.stream for r in header.coded}) < len(header.coded))
            see("raw tensors", bool(header.raw))
            see("config", header.config is None)
            see("files below", 0 if header.reference is None else header.reference.files)
            for draw in (record.kind.draw for record in header.drawn):
                see("draw", (draw.method, draw.dtypes[0], len(draw.dtypes), draw.axis))
                see("digits", draw.digits)
                see("divisor", draw.divisor is None)
                see("start", draw.start > 0)
            for quantizer in header.quantizers:
                book = quantizer.codebook
                see("form", type(book).__name__)
                if isinstance(book, Trellis):
                    see("trellis", book.number)
                see("frequencies", quantizer.frequencies is None)
            see("rungs", len(header.rungs) > 1)
            see("units that come in late", any(r.entry.any() for r in header.coded))
            see("tables", len(header.last.allocation) > 2)
            for section in header.sections[: 1 + len(header.blocks)]:
                see("codec", section.codec)
            for record in header.coded:
                kind = record.kind
                see("basis", kind.basis)
                see("split", kind.split)
                see("dtype", kind.dtype)
                if kind.is_pair:
                    see("layout", kind.layout)
                    see("fan_in_fan_out", kind.fan_in_fan_out)
                else:
                    see("dimensions of a vector", len(kind.stored_shapes[0]))
                    see("basis of a vector", kind.basis)
                    see("a vector that comes in late", bool(record.entry.any()))
                see("k < n", kind.num_basis != kind.vector_lengths)
                see("nothing kept", record.units == 0)
    both = {True, False}
    assert len(seen.pop("trellis")) > len(TRELLISES) / 2  # all of them are in the conformance kit
    assert seen == {
        "streams shared": both, "raw tensors": both, "config": both, "frequencies": both,
        "form": {"Codebook", "Trellis", "Dependent"}, "codec": {0, 2, 3},
        "basis": {1, 2, 3}, "dimensions of a vector": {0, 1, 2}, "basis of a vector": {1, 2},
        "a vector that comes in late": both,
        "split": {"component", "factor", "difference"}, "layout": {"linear", "conv", "embedding"},
        "dtype": {"F32", "F16", "BF16"},
        "fan_in_fan_out": both, "k < n": both, "nothing kept": both, "rungs": both, "units that come in late": both,
        "tables": both, "files below": {0, 1, 2, 3}, "digits": {24, 11, 8}, "divisor": both, "start": both,
        "draw": {
            ("uniform-fused", "F32", 1, 0), ("uniform", "F32", 1, 0), ("uniform-fused", "BF16", 3, 1),
            ("ternary", "F32", 2, 0), ("uniform", "BF16", 1, 0), ("uniform", "F16", 1, 1),
        },
    }  # fmt: skip


def test_the_set_is_small() -> None:
    assert sum(entry["bytes"] for entry in FILES.values()) < 40_000
