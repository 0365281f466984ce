"""`encode --data self` and `--prompts`, on a language model of two layers made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nola_codec.encoder.expectation import render_taught_gains

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
    facts = run("inspect", out, "--json").json
    assert "loss" not in facts["measured"], "a distance from the adapter is no loss of a task"
    assert (task["is_distance"], facts["measured"]["distance"]) == (True, task["file"])
    shown = run("inspect", out).out
    assert shown.partition("\n")[0].endswith("; trained on what the adapter predicts; no task was measured")
    card = run("push", out, "me/task", "--dry-run").out
    assert "| distance from the adapter | " in card
    assert "| held-out loss | not recorded |" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nola", "prompts.txt"]
    first = out.read_bytes()
    assert run("encode", strong, "-o", out, "--prompts", prompts, *options, "-f", "-q").status == 0
    assert out.read_bytes() == first


def test_the_report_counts_the_prompts_that_were_used(run: Run, strong: Path, base: Path, tmp_path: Path) -> None:
    """One prompt is no plural, and of very many only some are answered, from all parts of the file."""
    path = tmp_path / "p.txt"
    for lines, said in ((1, "48 answers to 1 prompt."), (2000, "48 answers to 48 prompts.")):
        path.write_text("the cat\n" * lines)
        done = run("encode", strong, "-n", "--prompts", path, "--base", base, "--size", SIZE, "--steps", 1)
        assert f"the adapter wrote {said} Losses compare predictions with its own." in " ".join(done.out.split())


def test_few_steps_draw_few_texts(run: Run, strong: Path, base: Path, prompts: Path) -> None:
    options = ["--prompts", prompts, "--base", base, "--size", SIZE, "--steps", 1, "--batch", 2]
    done = run("encode", strong, "-n", *options)
    assert "the adapter wrote 24 answers to 3 prompts." in " ".join(done.out.split()), "components need 12 batches"


@pytest.mark.parametrize("options", [["--fit", "task"], ["--data", "self"]])
def test_nothing_but_base_and_adapter(options: list[str], run: Run, strong: Path, base: Path, tmp_path: Path) -> None:
    done = run("encode", strong, "-n", *options, "--base", base, "--size", SIZE, "--batch", 4, "--steps", 8)
    assert done.status == 0, done.err
    verdict = done.out.partition("\n")[0]
    assert verdict.endswith(" of the way from the base model's predictions to the adapter's; no task was measured")
    assert "\ndistance " in done.out
    assert "nats a token from the adapter's predictions" in done.out
    said = "the adapter wrote 48 texts from nothing, drawn away from those of the base model. Losses compare"
    assert f" data a causal language model: {said}" in " ".join(done.out.split())
    assert list(tmp_path.iterdir()) == []


def test_texts_from_nothing_are_drawn_away_from_the_base_model(
    strong: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the adapter is attached, the other model is the base model, which also writes the beginnings."""
    import torch

    from nola_codec.integrations.causal import load_causal
    from nola_codec.integrations.self_teaching import language, self_tuner
    from nola_codec.training import TaskSettings

    draw, kinds = language.sample_answers, []
    ids = torch.tensor([[2, 3, 4]])
    expected = load_causal(base)[0](input_ids=ids).logits

    def check(model: Any, tokenizer: Any, prompts: Any, settings: Any, tell: Any) -> Any:
        own = model(input_ids=ids).logits
        if settings.contrast is None:  # a beginning
            torch.testing.assert_close(own, expected)
        else:
            torch.testing.assert_close(settings.contrast.forward(input_ids=ids).logits, expected)
            assert not torch.allclose(own, expected, atol=0.1)
            assert min(settings.contrast.strengths) > 1
        kinds.append((settings.contrast is None, len(prompts)))
        return draw(model, tokenizer, prompts, settings, tell)

    monkeypatch.setattr(language, "sample_answers", check)
    self_tuner(base, strong, settings=TaskSettings(precision="float32"))
    total = 48 + 2 * 32
    assert kinds[0] == (True, total // 2)
    assert all(not is_beginning for is_beginning, _ in kinds[1:])
    assert (False, total // 2) in kinds[1:]


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


def test_an_interrupt_says_how_to_go_on(
    run: Run, strong: Path, base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user presses Ctrl-C when some steps are done and saved."""
    from nola_codec.training import TaskTuner

    store = TaskTuner._write_checkpoint

    def interrupt(*arguments: Any) -> None:
        store(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(TaskTuner, "_write_checkpoint", interrupt)
    out = tmp_path / "a.nola"
    done = run("encode", strong, "-o", out, "--prompts", prompts, "--base", base, "--size", SIZE, "--steps", 2, "-q")
    assert done.status == 130
    assert f"note: {out}.training has what was trained: the same command goes on from there" in done.err
    assert done.err.rstrip().endswith("nola-codec: interrupted")


def test_a_pipeline_serves_training_alone(run: Run, strong: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    done = run("encode", strong, "-n", "--base", tmp_path)
    assert done.status == 2
    assert "is a pipeline of Diffusers: give --base its unet or transformer folder" in done.err


def test_a_model_of_no_known_family(run: Run, strong: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Unknown"]}')
    done = run("encode", strong, "-n", "--data", "self", "--base", tmp_path)
    assert done.status == 3
    assert "an adapter can teach its own code with causal language models" in done.err


def test_training_is_offered_where_a_loss_can_be_seen(run: Run, trained: Path, base: Path, tmp_path: Path) -> None:
    offered = "a dozen --prompts, or --data self without any"
    note = run("encode", trained, "-n", "--size", "600B", "--base", base).err
    assert offered in note
    assert f"files kept {render_taught_gains()}" in note
    assert offered not in run("encode", trained, "-n", "--error", "0.001", "--base", base).err
    assert offered not in run("encode", trained, "-n", "--size", "600B").err
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    assert offered not in run("encode", trained, "-n", "--size", "600B", "--base", tmp_path).err


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("DORA", "DoRA cannot be trained on a task; leave --fit task out, and its data"),
        ("FOURIERFT", "FourierFT is coded by the NMSE"),
        ("ZERO", "all deltas of the adapter are zero"),
    ],
)
@pytest.mark.parametrize("data", ["self", "rows"])
def test_what_no_task_can_train_is_refused_before_the_model_is_loaded(
    kind: str, message: str, data: str, run: Run, trained: Path, text: Path, tmp_path: Path
) -> None:
    """The folder of the base model has a configuration alone, so that loading it would fail."""
    lora, base = tmp_path / "lora", tmp_path / "base"
    for folder in (lora, base):
        folder.mkdir()
    (base / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    config = json.loads((trained / "adapter_config.json").read_text())
    tensors = load_file(trained / "adapter_model.safetensors")
    name = next(iter(tensors)).rpartition(".lora_")[0]
    if kind == "DORA":
        config["use_dora"] = True
        ends = {key.rpartition(".lora_B")[0]: len(value) for key, value in tensors.items() if ".lora_B" in key}
        tensors |= {f"{each}.lora_magnitude_vector": np.ones(rows, np.float32) for each, rows in ends.items()}
    elif kind == "ZERO":
        tensors = {key: 0 * value if ".lora_B" in key else value for key, value in tensors.items()}
    else:
        config = {"peft_type": "FOURIERFT", "n_frequency": 9}
        tensors = {f"{name}.fourierft_spectrum": np.ones(9, np.float32)}
    save_file(tensors, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps(config))
    given = "self" if data == "self" else text
    done = run("encode", lora, "-n", "--size", SIZE, "--data", given, "--base", base)
    assert done.status == 3, done.err
    assert message in done.err


def test_what_the_adapter_brings_along(
    run: Run, strong: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    talking, own = tmp_path / "base", tmp_path / "lora"
    shutil.copytree(base, talking)
    template = "{% for m in messages %}the {{ m['content'] }} and {% endfor %}a "
    (talking / "chat_template.jinja").write_text(template)
    shutil.copytree(strong, own)
    (own / "README.md").write_text(
        "---\nwidget:\n- text: the dog ran\n- messages: [{role: user, content: park}]\n---\n"
    )
    done = run("encode", own, "-n", "--data", "self", "--base", talking, "--size", SIZE, "--steps", 1, "--json")
    assert done.status == 0, done.err
    said = "half of them answers to the 2 prompts of the model card, the others texts from nothing or from questions"
    assert said in done.json["task"]["data"]
