"""Files that hold the difference to an earlier version: sizes, exactness, and where the reference is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import nola_codec
import nola_codec.numpy
import nola_codec.torch
from nola_codec.api.decoding import read_adapter
from nola_codec.container.reader import open_container
from nola_codec.container.writer import assemble
from nola_codec.errors import ChecksumMismatch, EncodeError, FormatError
from nola_codec.model.adapter import Adapter
from nola_codec.model.header import ReferenceEntry

NAMES = [f"base_model.model.model.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "qv"]
OUT, IN, RANK = 96, 128, 4


def factors(rank: int = RANK) -> dict[str, np.ndarray]:
    """A first version: factors whose components fall in strength."""
    rng = np.random.default_rng(0)
    made = {}
    for name in NAMES:
        strength = 0.6 ** np.arange(rank)
        made[f"{name}.lora_A.weight"] = rng.standard_normal((rank, IN)) * 0.1
        made[f"{name}.lora_B.weight"] = rng.standard_normal((OUT, rank)) * strength * 0.05
    return {key: value.astype(np.float32) for key, value in made.items()}


def grown(before: dict[str, np.ndarray], amount: float = 0.15, seed: int = 1) -> dict[str, np.ndarray]:
    """The next version: larger by a tenth, moved a little, and in another gauge."""
    rng = np.random.default_rng(seed)
    moved = {}
    for key, value in before.items():
        noise = rng.standard_normal(value.shape) * np.sqrt((value.astype(float) ** 2).mean(axis=-1, keepdims=True))
        moved[key] = 1.05 * value + amount * noise
    for name in NAMES:
        turn = rng.standard_normal((RANK, RANK))
        moved[f"{name}.lora_A.weight"] = np.linalg.solve(turn, moved[f"{name}.lora_A.weight"])
        moved[f"{name}.lora_B.weight"] = moved[f"{name}.lora_B.weight"] @ turn
    return {key: value.astype(np.float32) for key, value in moved.items()}


def write(folder: Path, tensors: dict[str, np.ndarray], rank: int = RANK) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def nmse(adapter: Adapter, wanted: Path) -> float:
    """The NMSE of all deltas, by dense products."""
    tensors = load_file(wanted / "adapter_model.safetensors")
    lost = whole = 0.0
    for module in adapter.modules:
        delta = tensors[f"{module.name}.lora_B.weight"].astype(float) @ tensors[f"{module.name}.lora_A.weight"]
        lost += float(((delta - module.lora_B.astype(float) @ module.lora_A) ** 2).sum())
        whole += float((delta**2).sum())
    return lost / whole


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    first = factors()
    return write(tmp_path / "one", first), write(tmp_path / "two", grown(first))


@pytest.fixture
def pair(versions: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A file of the first version, and one of the second that needs it."""
    old, new = tmp_path / "old.nola", tmp_path / "new.nola"
    nola_codec.encode(versions[0], old, nmse=0.05)
    nola_codec.encode(versions[1], new, nmse=0.05, reference=old)
    return old, new


@pytest.mark.parametrize("rate", [{"nmse": 0.05}, {"nmse": 0.01}, {}], ids=str)
def test_a_difference_is_smaller_and_meets_its_target(
    rate: dict[str, Any], versions: tuple[Path, Path], tmp_path: Path
) -> None:
    old = tmp_path / "old.nola"
    nola_codec.encode(versions[0], old, **rate)
    alone = nola_codec.encode(versions[1], None, **rate)
    report = nola_codec.encode(versions[1], tmp_path / "new.nola", reference=old, **rate)
    assert report.bytes < 0.75 * alone.bytes
    decoded = read_adapter(tmp_path / "new.nola")
    assert all(module.rank == RANK for module in decoded.modules)
    assert report.nmse == pytest.approx(nmse(decoded, versions[1]), rel=1e-6)
    if rate:
        assert 0.9 * rate["nmse"] < report.nmse <= rate["nmse"]
    else:
        assert report.effective_error is not None
        assert report.effective_error <= 0.02
    assert any("reference" in note for note in report.notes)


def test_a_size_is_kept(versions: tuple[Path, Path], pair: tuple[Path, Path]) -> None:
    report = nola_codec.encode(versions[1], None, size=2500, reference=pair[0])
    assert 2400 < report.bytes <= 2500


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_each_tensor_alone_is_that_of_the_whole_file(device: str, pair: tuple[Path, Path]) -> None:
    wanted = {module.name: module for module in read_adapter(pair[1]).modules}
    with nola_codec.load(pair[1], device) as opened:
        for name in reversed(opened.names()):
            lora_A, lora_B = (np.asarray(factor) for factor in opened.factors(name))
            assert np.array_equal(lora_A, wanted[name].lora_A)
            assert np.array_equal(lora_B, wanted[name].lora_B)


def lie_about(reference: Path, other: Path, out: Path) -> Path:
    """A file with the numbers of `other` whose header states the decoded SHA-256 of `reference`."""
    with open_container(reference) as right, open_container(other) as container:
        said = right.header.decoded_sha256
        header = container.header
        sections = [(section.codec, container.section(i)) for i, section in enumerate(header.sections)]
        rungs = tuple(replace(rung, decoded_sha256=said) for rung in header.rungs)
        out.write_bytes(assemble(replace(header, rungs=rungs), sections))
    return out


def test_a_reference_that_lies_is_told_before_a_single_tensor_is_used(
    versions: tuple[Path, Path], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its header is all that the search sees of it."""
    other = tmp_path / "other.nola"
    nola_codec.encode(versions[0], other, nmse=0.2)
    liar = lie_about(pair[0], other, tmp_path / "liar.nola")
    with nola_codec.load(pair[1], "numpy", references=liar) as opened:
        for _ in range(2):  # a second try is no better
            with pytest.raises(ChecksumMismatch, match=r"liar\.nola: decoded factors: SHA-256 differs"):
                opened.factors(NAMES[0])
        with pytest.raises(ChecksumMismatch):
            opened.delta_weight(NAMES[0])
    with nola_codec.load(pair[1], "numpy", references=liar, verify=False) as opened:
        wrong = opened.factors(NAMES[0])
    with nola_codec.load(pair[1], "numpy", references=pair[0]) as opened:
        right = opened.factors(NAMES[0])
    assert not np.array_equal(wrong[0], right[0])


def test_torch_arrays_give_the_same_bits(pair: tuple[Path, Path]) -> None:
    from nola_codec.arrays import TorchArrays
    from nola_codec.container.reader import open_container
    from nola_codec.references.finding import open_decoder

    with open_container(pair[1]) as container:
        decoded = open_decoder(container, TorchArrays()).decode_all()  # compares the decoded SHA-256
    assert all(side.dtype == torch.int16 for record in decoded for side in record.sides)


def test_the_reference_is_found(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    elsewhere, releases = tmp_path / "elsewhere", tmp_path / "releases"
    elsewhere.mkdir()
    releases.mkdir()
    alone = Path(shutil.copy(new, elsewhere))
    renamed = Path(shutil.copy(old, releases / "another name.nola"))
    (releases / "damaged.nola").write_bytes(old.read_bytes()[:-4])
    asked: list[ReferenceEntry] = []

    def resolve(entry: ReferenceEntry) -> bytes:
        asked.append(entry)
        return old.read_bytes()

    wanted = nola_codec.verify(new)["decoded_sha256"]
    for references in (renamed, releases, [elsewhere, releases], old.read_bytes(), resolve):
        assert nola_codec.verify(alone, references=references)["decoded_sha256"] == wanted
    assert asked[0].sha256.hex() == nola_codec.verify(old)["decoded_sha256"]
    assert asked[0].name == "old.nola"


def entries(alone: Path, base: Path, out: Path) -> dict[str, Callable[..., Any]]:
    """Every way into a file."""

    def load(**given: Any) -> Any:
        with nola_codec.load(alone, "numpy", **given) as opened:
            return opened.factors(opened.names()[0])

    def safe_open(**given: Any) -> Any:
        with nola_codec.safe_open(alone, "np", **given) as opened:
            return opened.get_tensors()

    return {
        "decode": lambda **given: nola_codec.decode(alone, out / "decoded", overwrite=True, **given),
        "verify": lambda **given: nola_codec.verify(alone, **given),
        "load": load,
        "read_adapter": lambda **given: read_adapter(alone, **given),
        "merge_adapters": lambda **given: nola_codec.merge_adapters(
            [alone], out / "whole.nola", overwrite=True, nmse=0.1, **given
        ),
        "merge": lambda **given: nola_codec.merge([alone], base, out / "merged", overwrite=True, **given),
        "compare": lambda **given: nola_codec.compare(alone, alone, **given),
        "safe_open": safe_open,
        "load_file": lambda **given: nola_codec.numpy.load_file(alone, **given),
        "torch.load": lambda **given: nola_codec.torch.load(alone.read_bytes(), **given),
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    weights = {name.removeprefix("base_model.model.") + ".weight": np.zeros((OUT, IN), np.float32) for name in NAMES}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("entry", sorted(entries(Path(), Path(), Path())))
def test_each_entry_takes_the_reference_or_says_what_is_needed(
    entry: str, pair: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    call = entries(Path(shutil.copy(pair[1], folder)), base, tmp_path)[entry]
    wrong = tmp_path / "wrong.nola"
    nola_codec.encode(write(tmp_path / "three", grown(factors(), seed=5)), wrong, nmse=0.05)
    for given in ({}, {"references": wrong}, {"references": folder}, {"references": lambda entry: None}):
        with pytest.raises(FormatError, match=r"old\.nola") as caught:
            call(**given)
        assert caught.value.code == "reference"
        assert nola_codec.verify(pair[0])["decoded_sha256"] in str(caught.value)
    call(references=pair[0])


def test_many_files_take_their_references(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder, out = tmp_path / "elsewhere", tmp_path / "out"
    folder.mkdir()
    shutil.copy(pair[1], folder)
    run: dict[str, Any] = {"workers": 1, "manifest_format": "jsonl"}
    for verify in (lambda **given: nola_codec.verify_many(folder, workers=1, **given),
                   lambda **given: nola_codec.decode_many(folder, out, **run, **given)):  # fmt: skip
        failed = verify()
        assert [row.code for row in failed.failed] == ["reference"]
        done = verify(references=pair[0])
        assert (done.done, done.failed) == (1, ())
    assert nola_codec.decode_many(folder, out, **run).unchanged == 1  # where a reference is changes no output
    wanted = {module.name: module.lora_A for module in read_adapter(pair[1]).modules}
    made = {module.name: module.lora_A for module in read_adapter(out / "new").modules}
    assert all(np.array_equal(made[name], wanted[name]) for name in wanted)


def test_a_chain_and_its_end(versions: tuple[Path, Path], pair: tuple[Path, Path], tmp_path: Path) -> None:
    third, out = (
        write(tmp_path / "three", grown(load_file(versions[1] / "adapter_model.safetensors"), seed=2)),
        tmp_path / "3.nola",
    )
    nola_codec.encode(third, out, nmse=0.05, reference=pair[1])
    assert nmse(read_adapter(out), third) <= 0.05
    facts = nola_codec.inspect(out)
    assert facts.reference is not None
    assert (facts.reference["files"], facts.reference["name"]) == (2, "new.nola")
    assert "new.nola" in str(facts)
    pair[0].unlink()
    with pytest.raises(FormatError, match=r"new\.nola.*old\.nola") as caught:
        nola_codec.verify(out)
    assert caught.value.code == "reference"


def test_what_is_merged_alone_needs_no_reference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = tmp_path / "sub" / "whole.nola"
    whole.parent.mkdir()
    nola_codec.merge_adapters([pair[1]], whole, nmse=0.001)
    assert nola_codec.inspect(whole).reference is None
    assert nola_codec.compare(whole, pair[1]).nmse <= 0.001


def test_chains_are_bounded(
    pair: tuple[Path, Path], versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nola_codec.api import reference_sources
    from nola_codec.container.limits import Limits

    monkeypatch.setattr(reference_sources, "DEFAULT_LIMITS", Limits(chain=1))
    with pytest.raises(EncodeError, match="merge") as caught:
        nola_codec.encode(versions[1], None, reference=pair[1])
    assert caught.value.code == "chain"


def test_an_adapter_itself_is_a_reference_in_any_store(versions: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = versions
    new = tmp_path / "files" / "new.nola"
    new.parent.mkdir()
    report = nola_codec.encode(second, new, nmse=0.05, reference=first)
    assert report.nmse <= 0.05
    with pytest.raises(FormatError, match="not coded"):
        nola_codec.verify(new)
    tensors = {key: torch.from_numpy(value) for key, value in load_file(first / "adapter_model.safetensors").items()}
    other = tmp_path / "pickled"
    other.mkdir()
    shutil.copy(first / "adapter_config.json", other)
    torch.save({key: value.double() for key, value in tensors.items()}, other / "adapter_model.bin")
    for references in (first, other, tmp_path):
        assert nmse(read_adapter(new, references=references), second) == pytest.approx(report.nmse, rel=1e-6)
    with pytest.raises(FormatError) as caught:
        read_adapter(new, references=second)
    assert caught.value.code == "reference"


def test_the_same_version_again_costs_next_to_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    nola_codec.decode(pair[1], tmp_path / "decoded")
    report = nola_codec.encode(tmp_path / "decoded", tmp_path / "again.nola", nmse=0.05, reference=pair[1])
    assert report.nmse < 1e-9
    assert report.bytes < 700


def test_another_rank_and_new_modules(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = {key: value for key, value in factors(6).items() if NAMES[0] not in key}
    for name, size in ((NAMES[1].replace("v_proj", "o_proj"), OUT), (NAMES[0], OUT + 1)):
        tensors[f"{name}.lora_A.weight"] = tensors[f"{NAMES[1]}.lora_A.weight"]
        tensors[f"{name}.lora_B.weight"] = np.resize(tensors[f"{NAMES[1]}.lora_B.weight"], (size, 6))
    wider = write(tmp_path / "wider", tensors, 6)
    report = nola_codec.encode(wider, tmp_path / "wider.nola", nmse=0.05, reference=pair[0])
    assert report.nmse <= 0.05
    assert any(note.startswith("2 of 7 records") for note in report.notes)
    assert nmse(read_adapter(tmp_path / "wider.nola"), wider) == pytest.approx(report.nmse, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"bits": 4}, {"rank": 2}, {"progressive": True}, {"carried": "coded"}, {"importance": {"*q_proj": 2.0}}],
    ids=str,
)
def test_options_that_cannot_go_with_a_reference(
    options: dict[str, Any], versions: tuple[Path, Path], pair: tuple[Path, Path]
) -> None:
    with pytest.raises(EncodeError, match="reference") as caught:
        nola_codec.encode(versions[1], None, reference=pair[0], **options)
    assert caught.value.code == "option"


def test_an_unrelated_adapter_is_no_reference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = {key.replace("layers", "blocks"): value for key, value in factors().items()}
    with pytest.raises(EncodeError, match="no earlier version") as caught:
        nola_codec.encode(write(tmp_path / "other", other), None, reference=pair[0])
    assert caught.value.code == "reference"


def test_a_rung_of_a_progressive_file_is_a_reference(versions: tuple[Path, Path], tmp_path: Path) -> None:
    """Who has the whole progressive file has its rungs too; who has only a rung lacks the whole."""
    whole, coarse, new = tmp_path / "whole.nola", tmp_path / "coarse.nola", tmp_path / "sub" / "new.nola"
    new.parent.mkdir()
    nola_codec.encode(versions[0], whole, nmse=0.02, progressive=True, rungs=[1500])
    nola_codec.truncate(whole, coarse, rung=0)
    nola_codec.encode(versions[1], new, nmse=0.05, reference=coarse)
    for reference in (coarse, whole):
        assert nmse(read_adapter(new, references=reference), versions[1]) <= 0.05
    nola_codec.encode(versions[1], new, nmse=0.05, reference=whole, overwrite=True)
    with pytest.raises(FormatError) as caught:
        read_adapter(new, references=coarse)
    assert caught.value.code == "reference"


def test_a_server_finds_references(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from nola_codec.disk_cache import DiskCache
    from nola_codec.integrations.serving import AdapterCache

    alone = tmp_path / "served" / "new.nola"
    alone.parent.mkdir()
    shutil.copy(pair[1], alone)
    cache = DiskCache(tmp_path / "cache")
    with AdapterCache([alone.parent], cache=cache) as adapters, pytest.raises(FormatError, match=r"old\.nola"):
        adapters.resolve("new")
    for options in ({"sources": [tmp_path]}, {"sources": [alone.parent], "references": pair[0]}):
        with AdapterCache(cache=DiskCache(tmp_path / f"cache {len(options)}"), dtype="f32", **options) as adapters:
            served = load_file(adapters.resolve("new").path / "adapter_model.safetensors")
        wanted = {module.name: module for module in read_adapter(pair[1]).modules}
        for name, module in wanted.items():
            assert np.array_equal(served[f"{name}.lora_B.weight"], module.lora_B)


def test_limits_hold_for_references(pair: tuple[Path, Path]) -> None:
    from nola_codec.container.limits import Limits

    entries = len(nola_codec.inspect(pair[0]).tensors)
    small = Limits(quantizers=nola_codec.inspect(pair[1]).quantizers)
    assert nola_codec.inspect(pair[0]).quantizers > small.quantizers or entries
    with nola_codec.load(pair[1], "numpy", limits=Limits(total_elements=len(NAMES) * RANK * (OUT + IN))) as opened:
        opened.factors(opened.names()[0])


def test_a_reference_behind_a_url(pair: tuple[Path, Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "new.nola"
    alone.parent.mkdir()
    shutil.copy(pair[1], alone)
    assert (
        nola_codec.verify(alone, references=pair[0].as_uri())["decoded_sha256"]
        == (nola_codec.verify(pair[1])["decoded_sha256"])
    )


def test_noise_does_not_add_up_over_a_chain(versions: tuple[Path, Path], tmp_path: Path) -> None:
    """A coarse file has noise of several times the delta's energy; those after it must not add as much again."""
    tensors, before = factors(), None
    for step in range(5):
        source = write(tmp_path / f"step-{step}", tensors)
        report = nola_codec.encode(source, tmp_path / f"{step}.nola", error=0.2, reference=before)
        assert report.effective_error is not None
        assert report.effective_error <= 0.2
        assert report.nmse <= 4
        before = tmp_path / f"{step}.nola"
        tensors = grown(tensors, seed=step + 10)


def test_what_is_coded_of_a_vector_takes_the_most_away() -> None:
    """The best gain, by a search over gains: error and value are those of the equations."""
    from nola_codec.fit.difference_form import _parts_of

    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 400)) / 20
    u = 0.8 * x + 0.7 * rng.standard_normal((1, 400)) / 20
    whole = float((x**2).sum())
    for gamma, v in ((1.0, x - u), (20.0, x - u), (20.0, x - u * float((u * x).sum() / (u**2).sum()))):
        parts = _parts_of(x, u, v, gamma, np.array([whole]))
        for y in (0.1, 0.5, 0.9):
            noise2 = y * (1 - y) * (v**2).sum() / whole

            def error(t: float, v: np.ndarray = v, y: float = y, gamma: float = gamma, noise2: float = noise2) -> float:
                mean = u + t * y * v
                share = float((mean * x).sum()) / whole
                total = float((mean**2).sum()) / whole + t**2 * noise2
                return (1 - share) ** 2 + (total - share**2) / gamma

            own = float(parts.gamma[0])
            left = error(0.0) - float(parts.value[0]) * own * y / (1 + (own - 1) * y)
            best = float(parts.size[0]) / (y + (1 - y) / own)
            assert float(parts.before[0]) == pytest.approx(error(0.0))
            assert error(best) == pytest.approx(left)
            assert error(best) <= min(error(t) for t in np.linspace(0.0, 5.0, 401)) + 1e-9
