"""`encode --data self` and `--prompts`, on a language model of two layers made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SIZE = "800B"


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    from nola_codec.integrations.self_teaching import language

    monkeypatch.setattr(language, "TEXTS", 48)


@pytest.fixture(scope="session")
def strong(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter a hundred times as strong: it predicts other words than the base model."""
    folder = tmp_path_factory.mktemp("strong")
    shutil.copy(trained / "adapter_model.safetensors", folder)
    config = json.loads((trained / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 400}))
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("the cat\na dog ran\nthe dog sat\n")
    return path


def test_prompts_are_enough(run: Run, strong: Path, base: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.nola"
    options = ["--base", base, "--size", SIZE, "--batch", 4, "--steps", 30]
    done = run("encode", strong, "-o", out, "--prompts", prompts, *options, "--json")
    assert (done.status, done.err) == (0, "")
    task = done.json["task"]
    assert 0 == task["adapter"] < task["file"] < task["start"] < task["base"]
    assert task["kept"] == pytest.approx(1 - task["file"] / task["base"])
    assert "answers to 3 prompts" in task["data"]
    assert (done.json["objective"], out.stat().st_size) == ("task", done.json["bytes"])
    assert run("verify", out).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nola", "prompts.txt"]
    first = out.read_bytes()
    assert run("encode", strong, "-o", out, "--prompts", prompts, *options, "-f", "-q").status == 0
    assert out.read_bytes() == first


@pytest.mark.parametrize("options", [["--fit", "task"], ["--data", "self"]])
def test_nothing_but_base_and_adapter(options: list[str], run: Run, strong: Path, base: Path, tmp_path: Path) -> None:
    done = run("encode", strong, "-n", *options, "--base", base, "--size", SIZE, "--batch", 4, "--steps", 8)
    assert done.status == 0, done.err
    assert "nats a token from the adapter's predictions" in done.out
    assert "\n  data       a causal language model: " in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_killed_command_goes_on(
    run: Run, strong: Path, base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nola_codec.integrations.self_teaching import language

    out, other = tmp_path / "a.nola", tmp_path / "b.nola"
    command = ["--prompts", prompts, "--base", base, "--size", SIZE, "--batch", 4, "--steps", 6, "-q"]
    assert run("encode", strong, "-o", other, *command).status == 0
    draw, draws = language.sample_answers, []

    def count(*arguments: Any) -> Any:
        draws.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(language, "sample_answers", count)
    with monkeypatch.context() as patch:
        patch.setattr("nola_codec.training.task.TaskTuner.tune", lambda *_: 1 / 0)
        assert run("encode", strong, "-o", out, *command).status != 0
    assert json.loads((tmp_path / "a.nola.training-samples").read_text())["samples"]
    assert run("encode", strong, "-o", out, *command).status == 0
    assert len(draws) == 1
    assert out.read_bytes() == other.read_bytes()


def test_a_model_of_no_known_family(run: Run, strong: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Unknown"]}')
    done = run("encode", strong, "-n", "--data", "self", "--base", tmp_path)
    assert done.status == 3
    assert "an adapter can teach its own code with causal language models" in done.err


def test_training_is_offered_where_a_loss_can_be_seen(run: Run, trained: Path, base: Path, tmp_path: Path) -> None:
    offered = "a dozen --prompts, or --data self without any"
    note = run("encode", trained, "-n", "--size", "600B", "--base", base).err
    assert offered in note
    assert "files kept 93.6% instead of 82.2% of the gain in 5 KB" in note
    assert offered not in run("encode", trained, "-n", "--error", "0.001", "--base", base).err
    assert offered not in run("encode", trained, "-n", "--size", "600B").err
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    assert offered not in run("encode", trained, "-n", "--size", "600B", "--base", tmp_path).err
