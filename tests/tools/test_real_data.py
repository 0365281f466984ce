"""The data that the repository carries, and how the tools find more."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest

import nola_codec

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ("gptneo125m_movies", "smollm2_e2e")

pytestmark = pytest.mark.skipif(not (ROOT / "examples").is_dir(), reason="no examples/: not a whole checkout")


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import real_data

    return real_data


def test_a_lone_clone_has_the_carried_adapters(
    real_data: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOLA_DATA", str(tmp_path / "nothing"))
    assert sorted(real_data.adapters()) == sorted(ADAPTERS)
    assert "NOLA_DATA" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no adapter gpt2_tigrinya: set NOLA_DATA"):
        real_data.adapter("gpt2_tigrinya")
    with pytest.raises(SystemExit, match="no text set banking77: set NOLA_DATA"):
        real_data.text_set("banking77")


def test_further_data_is_added(real_data: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lora" / "two").mkdir(parents=True)
    (tmp_path / "lora" / "smollm2_e2e").mkdir()
    for name in ("lora/one.safetensors", "lora/two/100_a.safetensors", "lora/two/200_a.safetensors"):
        (tmp_path / name).touch()
    monkeypatch.setenv("NOLA_DATA", str(tmp_path))
    assert sorted(set(real_data.adapters()) - set(ADAPTERS)) == ["one", "two/100", "two/200"]
    assert real_data.adapter("smollm2_e2e") == ROOT / "examples" / "smollm2_e2e"  # the same figures everywhere


@pytest.mark.parametrize("name", ADAPTERS)
def test_carried_adapters_are_the_published_ones_in_half_precision(name: str, shared_data: Path) -> None:
    found = nola_codec.compare(shared_data / "lora" / name, ROOT / "examples" / name)
    assert found.same_structure
    assert found.nmse < 1e-7


@pytest.mark.parametrize("name", [*ADAPTERS, "e2e"])
def test_each_folder_has_its_licence(name: str) -> None:
    assert (ROOT / "examples" / name / "LICENSE").stat().st_size > 1000


def test_carried_rows_are_the_first_of_the_shuffled_test_set(
    real_data: ModuleType, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import e2e_loss

    lines = (shared_data / "sets" / "e2e" / "test.txt").read_text(encoding="utf-8").splitlines()
    pairs = [tuple(part.strip() for part in line.split("||", 1)) for line in lines]
    random.Random(1).shuffle(pairs)
    assert e2e_loss.rows("test", 192) == pairs[:192]
    monkeypatch.setenv("NOLA_DATA", str(shared_data))
    assert e2e_loss.rows("test", 193) == pairs[:193]
