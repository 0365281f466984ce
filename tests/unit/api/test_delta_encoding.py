"""The change from a base to a fine-tuned model: encoded, merged back exactly, and refused where it makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

import nola_codec
from nola_codec.api.delta_encoding import encode_delta_bytes
from nola_codec.errors import AdapterError, EncodeError

Tensors = dict[str, torch.Tensor]


def linear(i: int, part: str) -> str:
    return f"model.layers.{i}.{part}.weight"


def base_tensors(dtype: torch.dtype) -> Tensors:
    torch.manual_seed(0)
    tensors = {"model.embed_tokens.weight": torch.randn(60, 48), "model.norm.weight": torch.ones(48)}
    for i in range(2):
        tensors |= {
            linear(i, "up"): torch.randn(96, 48),
            linear(i, "down"): torch.randn(48, 96),
            linear(i, "conv"): torch.randn(72, 12, 3, 3),
            linear(i, "norm"): torch.ones(48),
            f"model.layers.{i}.up.bias": torch.randn(96),
            f"model.layers.{i}.steps": torch.tensor(3.0),
        }
    return {name: t.to(dtype) for name, t in tensors.items()} | {"model.ids": torch.arange(9)}


def trained(base: Tensors) -> Tensors:
    """Every float changed but those of one matrix: matrices by a few strong components and a flat rest."""
    torch.manual_seed(1)
    tuned = dict(base)
    for name, value in base.items():
        if not value.is_floating_point() or name == linear(1, "down"):
            continue
        change = 0.02 * torch.randn(value.shape)
        if value.ndim > 1:
            flat = change.reshape(len(value), -1)
            flat += 0.3 * torch.outer(torch.randn(len(flat)), torch.randn(flat.shape[1]))
        tuned[name] = (value.float() + change).to(value.dtype)
    return tuned


def directory(path: Path, tensors: Tensors, shards: int = 1) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    if shards == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return path
    names, where = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in names[i::shards]}, path / file, {"format": "pt"})
        where |= dict.fromkeys(names[i::shards], file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    base = base_tensors(request.param)
    return directory(tmp_path / "base", base, shards=2), directory(tmp_path / "tuned", trained(base))


@pytest.fixture
def half(tmp_path: Path) -> tuple[Path, Path]:
    base = base_tensors(torch.bfloat16)
    return directory(tmp_path / "base", base), directory(tmp_path / "tuned", trained(base))


def loaded(path: Path) -> Tensors:
    tensors: Tensors = {}
    for file in path.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def exact(encoded: bytes) -> dict[str, torch.Tensor]:
    """Changes in float64, from the records: the low-rank product, exact, plus the vector."""
    with nola_codec.load(encoded) as opened:
        found: dict[str, torch.Tensor] = {}
        for record in opened.header.pairs:
            lora_A, lora_B = opened.factors(record.name)
            (rows, *_), (_, *kernel) = record.kind.stored_shapes
            found[record.name] = (lora_B.double() @ lora_A.double()).reshape(rows, *kernel)
        for name in opened.vector_names():
            weight, value = name.removesuffix(".diff"), opened.vector(name).double()
            found[weight] = found[weight] + value if weight in found else value
    return found


@pytest.mark.parametrize("options", [{"nmse": 0.01}, {"error": 0.02, "rank": 2}, {"ratio": 6, "residue": False}])
def test_there_and_back(models: tuple[Path, Path], tmp_path: Path, options: dict[str, Any]) -> None:
    base, tuned = models
    data, report = encode_delta_bytes(tuned, base, tmp_path / "task.nola", embeddings=True, **options)
    assert (tmp_path / "task.nola").read_bytes() == data
    nola_codec.verify(data)
    before, after, deltas = loaded(base), loaded(tuned), exact(data)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert set(deltas) == changed
    assert report.parameters == sum(before[n].numel() for n in changed)
    if "ratio" in options:
        assert len(data) <= 2 * report.parameters / 6
    lost = sum(float((after[n].double() - before[n].double() - deltas[n]).square().sum()) for n in changed)
    energy = sum(float((after[n].double() - before[n].double()).square().sum()) for n in changed)
    if options.get("residue", True):
        assert report.nmse == pytest.approx(lost / energy, rel=0.1)  # cross terms of the two parts are left out
    if "nmse" in options:
        assert lost / energy <= 1.05 * options["nmse"]
    out = nola_codec.decode(data, tmp_path / "merged", base=base)
    merged = loaded(out)
    assert sorted(p.name for p in out.glob("*.safetensors")) == sorted(p.name for p in base.glob("*.safetensors"))
    for name, value in before.items():
        if name in deltas:
            wanted = value.double() + deltas[name]
            # One rounding: the result is a nearest neighbour of the exact sum.
            gap = (merged[name].double() - wanted).abs()
            for other in (torch.inf, -torch.inf):
                near = (
                    torch.nextafter(merged[name].float(), torch.tensor(other))
                    if value.dtype == torch.float32
                    else (_next(merged[name], other))
                )
                assert bool((gap <= (near.double() - wanted).abs()).all()), name
        else:
            assert torch.equal(merged[name], value)


def _next(values: torch.Tensor, towards: float) -> torch.Tensor:
    """The neighbours of 16-bit floats; bit patterns ascend with magnitude."""
    bits = values.view(torch.int16)
    up = (values > 0) == (towards > 0)
    return torch.where(values == 0, values, (bits + torch.where(up, 1, -1).to(torch.int16)).view(values.dtype))


def test_dense_changes_without_a_base(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = models
    data, _ = encode_delta_bytes(tuned, base, nmse=0.05)
    for dtype, torch_dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        out = tmp_path / f"{dtype}.safetensors"
        nola_codec.decode(data, out, dtype=dtype)
        dense = load_file(out)
        for name, delta in exact(data).items():
            assert torch.equal(dense[name + ".diff"], delta.to(torch_dtype)), name
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(data, tmp_path / "directory")
    assert caught.value.code == "needs-file"


def test_what_is_coded_how(half: tuple[Path, Path]) -> None:
    """Matrices and convolutions are pairs and a rest; norms, biases and scalars vectors; what is equal is nothing."""
    base, tuned = half
    data, report = encode_delta_bytes(tuned, base, nmse=0.05, rank=3)
    facts = nola_codec.inspect(data)
    assert facts.dialect == "delta"
    rows = {t.name: t for t in facts.tensors}
    conv = rows[linear(0, "conv")]
    assert (conv.record, conv.layout, conv.shape, conv.rank) == ("lowrank", "conv", (72, 12, 3, 3), 3)
    assert rows[linear(0, "conv") + ".diff"].record == "vector"
    assert rows[linear(0, "up")].shape == (96, 48)
    assert rows[linear(0, "norm") + ".diff"].shape == (48,)
    assert rows["model.layers.1.steps.diff"].shape == () or "model.layers.1.steps.diff" not in rows
    assert not any(linear(1, "down") in name or "embed" in name or "ids" in name for name in rows)
    assert facts.parameters == report.parameters
    assert any("embed_tokens.weight is left out, with" in note for note in report.notes)


def test_choosing_weights(half: tuple[Path, Path]) -> None:
    base, tuned = half

    def names(**options: Any) -> set[str]:
        return set(exact(encode_delta_bytes(tuned, base, nmse=0.1, **options)[0]))

    assert names(include=[r"layers\.0\.(up|down)\.weight$"]) == {linear(0, "up"), linear(0, "down")}
    assert names(include=["norm"], exclude=["layers"]) == {"model.norm.weight"}
    assert "model.embed_tokens.weight" in names(embeddings=True)
    with pytest.raises(AdapterError) as caught:
        names(include=["nothing"])
    assert caught.value.code == "nothing-selected"
    with pytest.raises(EncodeError) as wrong:
        names(include=["("])
    assert wrong.value.code == "option"


def test_lone_files(tmp_path: Path) -> None:
    base = base_tensors(torch.bfloat16)
    save_file(base, tmp_path / "base.safetensors")
    save_file(trained(base), tmp_path / "tuned.safetensors")
    data, _ = encode_delta_bytes(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", nmse=0.01)
    whole, _ = encode_delta_bytes(
        directory(tmp_path / "t", trained(base), 3), directory(tmp_path / "b", base), nmse=0.01
    )
    assert exact(data).keys() == exact(whole).keys()
    nola_codec.decode(data, tmp_path / "merged.safetensors", base=tmp_path / "base.safetensors")
    merged, same = load_file(tmp_path / "merged.safetensors"), tmp_path / "dir"
    nola_codec.decode(data, same, base=tmp_path / "b")
    for name, value in loaded(same).items():
        assert torch.equal(merged[name], value)
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(data, tmp_path / "elsewhere", base=tmp_path / "base.safetensors")
    assert caught.value.code == "needs-file"


@pytest.mark.parametrize(
    ("alter", "code", "text"),
    [
        (lambda t: t.pop(linear(0, "up")), "base-mismatch", "has no such weight"),
        (lambda t: t.update(extra=torch.ones(3)), "base-mismatch", "extra"),
        (lambda t: t.update({linear(0, "up"): torch.ones(95, 48)}), "base-mismatch", "expected"),
        (lambda t: t.update({"model.ids": torch.zeros(9, dtype=torch.int64)}), "not-float", "model.ids"),
        (lambda t: t[linear(0, "up")].fill_(torch.nan), "not-finite", linear(0, "up")),
    ],
    ids=["missing", "extra", "shape", "integers", "not finite"],
)
def test_what_does_not_match(tmp_path: Path, alter: Any, code: str, text: str) -> None:
    base = base_tensors(torch.float32)
    tuned = {n: t.clone() for n, t in trained(base).items()}
    alter(tuned)
    with pytest.raises(AdapterError, match=text.replace(".", r"\.")) as caught:
        encode_delta_bytes(directory(tmp_path / "tuned", tuned), directory(tmp_path / "base", base), nmse=0.1)
    assert caught.value.code == code


def test_tied_heads_and_equal_models(tmp_path: Path) -> None:
    base = base_tensors(torch.float32)
    tuned = trained(base) | {"lm_head.weight": torch.ones(60, 48)}
    tied = directory(tmp_path / "base", base)
    _, report = encode_delta_bytes(directory(tmp_path / "tuned", tuned), tied, nmse=0.1)
    assert any("lm_head.weight is left out: it is stored by" in note for note in report.notes)
    with pytest.raises(AdapterError) as caught:
        encode_delta_bytes(tied, tied, nmse=0.1)
    assert caught.value.code == "nothing-changed"


def test_merging_into_another_model(half: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = half
    data, _ = encode_delta_bytes(tuned, base, nmse=0.1)
    other = {n: t for n, t in loaded(base).items() if n != linear(0, "up")}
    other[linear(0, "down")] = torch.ones(3, 3)
    same_shapes = {name: tensor + 1 for name, tensor in loaded(base).items()}
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(data, tmp_path / "out", base=directory(tmp_path / "third", same_shapes))
    assert caught.value.code == "other-base"
    changed = directory(tmp_path / "other", other)
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(data, tmp_path / "out", base=changed)
    assert caught.value.code == "other-base"
    with pytest.raises(AdapterError) as caught:
        nola_codec.merge([data], changed, tmp_path / "out", any_base=True)
    assert caught.value.code == "base-mismatch"
    assert linear(0, "up") in str(caught.value)
    assert linear(0, "down") in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"num_basis": 9}, {"rank": -1}, {"energy": 1.5}])
def test_options_that_make_no_sense(half: tuple[Path, Path], options: dict[str, Any]) -> None:
    base, tuned = half
    with pytest.raises(EncodeError) as caught:
        encode_delta_bytes(tuned, base, **options)
    assert caught.value.code == "option"


def test_a_share_of_the_energy(half: tuple[Path, Path]) -> None:
    """Components are taken until they hold the share: one of the strong ones, or nearly all."""
    base, tuned = half
    ranks = {}
    for energy in (0.3, 0.9995):
        data, _ = encode_delta_bytes(tuned, base, nmse=0.01, energy=energy, include=[linear(0, "up")])
        ranks[energy] = nola_codec.inspect(data).tensors[0].rank
    assert ranks[0.3] == 1
    assert ranks[0.9995] > 5


def test_equal_input_gives_equal_bytes(half: tuple[Path, Path]) -> None:
    base, tuned = half
    assert encode_delta_bytes(tuned, base, nmse=0.1)[0] == encode_delta_bytes(tuned, base, nmse=0.1)[0]


def test_the_number_of_threads_changes_no_byte(half: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = half
    found = set()
    for threads in ("1", "3"):
        monkeypatch.setenv("NOLA_THREADS", threads)
        with threadpool_limits(int(threads), user_api="blas"):
            found.add(encode_delta_bytes(tuned, base, nmse=0.1)[0])
    assert len(found) == 1


def test_arrays_on_disk_change_nothing(half: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = half
    whole, _ = encode_delta_bytes(tuned, base, nmse=0.1)
    monkeypatch.setattr("nola_codec.spool.THRESHOLD", 1000)
    monkeypatch.setattr("nola_codec.adapters.dialects.weight_changes._PIECE", 100)
    assert encode_delta_bytes(tuned, base, nmse=0.1)[0] == whole


def test_numbers_of_a_known_change(tmp_path: Path) -> None:
    """A change of rank one is found whole: the decoded product is it, to the quantizer's error."""
    base = {"w": torch.zeros(200, 300)}
    tuned = {"w": torch.outer(torch.linspace(-1, 1, 200), torch.linspace(0, 1, 300))}
    save_file(base, tmp_path / "b.safetensors")
    save_file(tuned, tmp_path / "t.safetensors")
    data, report = encode_delta_bytes(tmp_path / "t.safetensors", tmp_path / "b.safetensors", nmse=1e-3, residue=False)
    found = exact(data)["w"].numpy()
    assert np.square(found - tuned["w"].numpy()).sum() <= 1.01e-3 * float(tuned["w"].square().sum())
    assert report.tensors[0].kept == 1
    assert len(data) < 2500


def test_merging_into_a_model_in_memory(half: tuple[Path, Path]) -> None:
    """The same bits as in a directory; a weight that is not there is refused and nothing is changed."""
    base, tuned = half
    data, _ = encode_delta_bytes(tuned, base, nmse=0.1)

    class Holder(torch.nn.Module):
        def __init__(self, tensors: Tensors) -> None:
            super().__init__()
            self.tensors = {n: torch.nn.Parameter(t.clone()) for n, t in tensors.items() if t.is_floating_point()}

        def named_parameters(self, *_: Any, **__: Any) -> Any:
            return iter(self.tensors.items())

    before = loaded(base)
    model = Holder(before)
    with nola_codec.load(data) as opened:
        opened.merge_into(model)
    deltas = exact(data)
    nola_codec.decode(data, base.parent / "merged", base=base)
    for name, value in loaded(base.parent / "merged").items():
        if name in model.tensors:
            assert torch.equal(model.tensors[name], value), name
    lacking = Holder({n: t for n, t in before.items() if n != next(iter(deltas))})
    with pytest.raises(AdapterError) as caught, nola_codec.load(data) as opened:
        opened.merge_into(lacking)
    assert caught.value.code == "base-mismatch"
    assert all(torch.equal(value, before[n]) for n, value in lacking.tensors.items())


def test_one_delta_has_its_residue(half: tuple[Path, Path]) -> None:
    data, _ = encode_delta_bytes(*half, nmse=0.001, rank=3)
    whole = exact(data)
    with nola_codec.load(data) as opened:
        both = [name for name in opened.names() if f"{name}.diff" in opened.vector_names()]
        products = {name: opened.factors(name)[1] @ opened.factors(name)[0] for name in both}
        assert any(not torch.equal(opened.delta_weight(name), products[name]) for name in both)
        for name in both:
            assert torch.equal(opened.delta_weight(name), whole[name].float().reshape(products[name].shape))
