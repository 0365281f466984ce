"""The table of dialects, and the dialect of docs/add-a-dialect.md in it: registered by code and by an entry point."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nola_codec
from nola_codec.adapters import DIALECTS, deltas, dialect_of, find_dialect, read, register_dialect, registry, write
from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.conversion import convert
from nola_codec.adapters.dialects.peft_methods import CODED
from nola_codec.api.comparing import compare
from nola_codec.api.decoding import decode
from nola_codec.api.encoding import encode
from nola_codec.api.inspecting import inspect
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32, to_float32
from nola_codec.stores.safetensors_io import SafetensorsFile
from nola_codec.stores.safetensors_writer import write_file

PAGE = Path(__file__).resolve().parents[3] / "docs" / "add-a-dialect.md"
CLASS, REGISTER = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def unchanged_registry() -> Iterator[None]:
    known, loaded = dict(registry._known), set(registry._loaded)
    yield
    registry._known.clear()
    registry._known.update(known)
    registry._loaded.clear()
    registry._loaded.update(loaded)


def floats(*shape: int) -> RawTensor:
    values = np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)
    return from_float32(values, "F32")


def sesame(path: Path, scale: str = "2", **more: RawTensor) -> Path:
    tensors = {f"layers.{n}.proj.sesame.{side}": floats(*shape)
               for n in range(2) for side, shape in (("down", (3, 24)), ("up", (16, 3)))}  # fmt: skip
    return write_file(path, {**tensors, **more}, {"sesame.scale": scale})


def test_every_built_in_dialect_is_under_its_own_name() -> None:
    assert {name: dialect.name for name, dialect in DIALECTS.items()} == {name: name for name in DIALECTS}


@pytest.mark.parametrize("kind", sorted(set(CODED) - {"LORA", "ADALORA"}))
def test_every_other_method_of_peft_has_a_dialect_of_its_own(kind: str) -> None:
    found = DIALECTS["peft"].variant({"peft_type": kind})
    assert found.title.lower().replace("-", "") == kind.lower()
    assert found is DIALECTS["peft"].variant({"peft_type": kind})


def test_the_page_adds_a_dialect(tmp_path: Path) -> None:
    source = sesame(tmp_path / "in.safetensors")
    with pytest.raises(AdapterError) as caught:
        read(source)
    assert caught.value.code == "empty-adapter"
    names: dict[str, Any] = {}
    exec(CLASS + REGISTER, names)
    assert find_dialect("sesame") is names["SESAME"]
    adapter = read(source)
    assert (adapter.dialect, [m.scaling for m in adapter.modules]) == ("sesame", [2.0, 2.0])
    assert write(adapter, tmp_path / "out.safetensors").read_bytes() == source.read_bytes()
    assert (write(adapter, tmp_path / "out") / "lora.safetensors").read_bytes() == source.read_bytes()
    loralib = convert(adapter, "loralib")
    assert all(np.array_equal(a.dense(), b.dense()) for a, b in zip(deltas(adapter), deltas(loralib), strict=True))
    with pytest.raises(AdapterError, match="expected one of peft") as caught:
        convert(loralib, "sesame")
    assert caught.value.code == "not-expressible"


def test_the_pages_dialect_is_encoded_decoded_and_merged(tmp_path: Path) -> None:
    exec(CLASS + REGISTER, {})
    source, file = sesame(tmp_path / "in.safetensors"), tmp_path / "a.nola"
    encode(source, file, nmse=0.01)
    assert inspect(file).dialect == "sesame"
    decoded = decode(file, tmp_path / "out.safetensors")
    with SafetensorsFile(source) as before, SafetensorsFile(decoded) as after:
        assert before.tensors.keys() == after.tensors.keys()
    assert compare(source, file).nmse < 0.011
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "sesame"}), encoding="utf-8")
    weights = {f"layers.{n}.proj.weight": floats(16, 24) for n in range(2)}
    write_file(base / "model.safetensors", weights, {"format": "pt"})
    decode(file, tmp_path / "merged", base=base)
    with SafetensorsFile(tmp_path / "merged" / "model.safetensors") as merged:
        for delta in deltas(read(decoded)):
            wanted = to_float32(weights[f"{delta.name}.weight"]).astype(np.float64) + delta.dense()
            assert np.array_equal(to_float32(merged.read(f"{delta.name}.weight")), wanted.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [({"scale": "two"}, "bad-config", "sesame.scale is not a number"), ({"x": floats(2)}, "unknown-key", ": x")],
)
def test_the_pages_dialect_refuses(change: dict[str, Any], code: str, words: str, tmp_path: Path) -> None:
    exec(CLASS + REGISTER, {})
    with pytest.raises(AdapterError, match=words) as caught:
        read(sesame(tmp_path / "in.safetensors", **change))
    assert caught.value.code == code


def package(folder: Path, text: str, name: str = "sesame") -> None:
    """An installed package with one entry point."""
    (folder / f"{name}_plugin.py").write_text(text, encoding="utf-8")
    info = folder / f"{name}_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        f"[nola_codec.dialects]\n{name} = {name}_plugin:{name.upper()}\n", encoding="utf-8"
    )


def test_entry_points_are_loaded_when_no_known_dialect_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, CLASS)
    monkeypatch.syspath_prepend(tmp_path)
    known = write_file(tmp_path / "l.safetensors", {"q.lora_A": floats(2, 4), "q.lora_B": floats(4, 2)})
    assert read(known).dialect == "loralib"
    assert "sesame" not in DIALECTS
    assert read(sesame(tmp_path / "in.safetensors")).dialect == "sesame"
    assert "sesame" in DIALECTS


def test_an_entry_point_that_is_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "BROKEN = 1\n", "broken")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AdapterError, match=r"entry point broken of nola_codec\.dialects") as caught:
        find_dialect("nobody's")
    assert caught.value.code == "bad-dialect"
    assert find_dialect("peft") is DIALECTS["peft"]


def test_names_are_taken_once() -> None:
    class Other(Dialect):
        name = "peft"
        title = "another"
        detect = read_source = tensors = lambda *_, **__: None  # type: ignore[assignment]

    with pytest.raises(ValueError, match="'peft' already"):
        register_dialect(Other())
    register_dialect(DIALECTS["peft"])
    with pytest.raises(TypeError, match="subclass of Dialect"):
        register_dialect("peft")  # type: ignore[arg-type]


def test_a_dialect_must_say_how_it_reads_and_writes() -> None:
    class Silent(Dialect):
        name = title = "silent"

    with pytest.raises(TypeError, match="abstract"):
        Silent()  # type: ignore[abstract]


def test_a_variant_serves_what_the_configuration_names() -> None:
    for kind, title in (("LORA", "PEFT"), ("VERA", "VeRA"), ("RANDLORA", "RandLoRA"), (["VERA"], "PEFT")):
        dialect = dialect_of(Adapter("peft", (), config={"peft_type": kind}))
        assert (dialect.name, dialect.title) == ("peft", title)
    assert dialect_of(Adapter("kohya", (), config={"peft_type": "VERA"})) is DIALECTS["kohya"]


def test_defaults_hold_for_a_file_of_an_unknown_dialect(tmp_path: Path) -> None:
    exec(CLASS + REGISTER, {})
    data, _ = nola_codec.encode_bytes(sesame(tmp_path / "in.safetensors"), nmse=0.1)
    del registry._known["sesame"]
    facts = inspect(data)
    assert (facts.dialect, facts.base_model) == ("sesame", None)
    assert facts.parameters == 2 * 3 * (16 + 24)
    with pytest.raises(AdapterError, match="'sesame'") as caught:
        decode(data, tmp_path / "out")
    assert caught.value.code == "foreign-dialect"
