"""`eval`, on a language model of two layers made here. Right values come from PEFT and Transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import nola_codec

Run = Callable[..., Any]
pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT 0.21 asks it
]


@pytest.fixture(scope="module")
def one_torch_thread() -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lora(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained adapter, with the modules in its configuration, without which PEFT takes those that it likes."""
    path = tmp_path_factory.mktemp("trained") / "lora"
    shutil.copytree(trained, path)
    config = json.loads((path / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "v_proj", "down_proj"]
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [("the cat", "sat on a mat"), ("a dog", "ran to the park"), ("the dog", "sat on the cat"), ("a", "mat")]
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in texts))
    return path


@pytest.fixture(scope="module")
def small(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "small.nola"
    nola_codec.encode(lora, path, error=0.6)
    return path


def mean_loss(base: Path, adapter: Path | None, rows: Path) -> float:
    """Nats a scored token, row by row and without padding, by PEFT and Transformers alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    total = count = 0.0
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            total += model.eval()(input_ids=ids, labels=labels).loss.item() * len(answer)
        count += len(answer)
    return total / count


def test_losses_are_those_of_peft(run: Run, base: Path, lora: Path, small: Path, rows: Path, tmp_path: Path) -> None:
    done = run("eval", "--base", base, lora, small, "--data", rows, "--batch", 2, "--json")
    assert (done.status, done.err) == (0, "")
    found = done.json["measured"]
    assert [each["kind"] for each in found] == ["base", "adapter", "file"]
    again = nola_codec.decode(small, tmp_path / "again")
    wanted = [mean_loss(base, adapter, rows) for adapter in (None, lora, again)]
    assert [each["loss"] for each in found] == pytest.approx(wanted, rel=1e-5)
    assert wanted[1] < wanted[2] < wanted[0]  # the losses tell the three apart
    assert found[2]["gap"] == pytest.approx(wanted[2] - wanted[1], abs=1e-5)
    assert found[2]["kept"] == pytest.approx((wanted[0] - wanted[2]) / (wanted[0] - wanted[1]), abs=1e-4)
    assert found[2]["bytes"] == small.stat().st_size
    assert (done.json["rows"], done.json["tokens"], done.json["reference"]) == (4, 17, lora.name)


@pytest.mark.slow
def test_the_real_model(smollm2_base: Path, examples: Path, tmp_path: Path) -> None:
    """The losses of tools/e2e_loss.py, which loads the adapter by PEFT alone, on its first 12 rows."""
    tool = Path(__file__).resolve().parents[2] / "tools" / "e2e_loss.py"
    subprocess.run([sys.executable, tool, "--rows", "12", "--write-rows", tmp_path / "rows.jsonl"], check=True)
    wanted = []
    for adapter in ([], [examples / "smollm2_e2e"]):
        command = [sys.executable, tool, *adapter, "--rows", "12", "--base", smollm2_base]
        wanted.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    found = nola_codec.evaluate(smollm2_base, [examples / "smollm2_e2e"], tmp_path / "rows.jsonl")
    assert [each.loss for each in found.measured] == pytest.approx(wanted, abs=6e-5)


def test_its_json_goes_into_a_report(run: Run, base: Path, lora: Path, small: Path, rows: Path, tmp_path: Path) -> None:
    command = ("eval", "--base", base, lora, small, "--data", rows, "--generate", 1, "--max-new-tokens", 3, "--json")
    done = run(*command)
    (tmp_path / "losses.json").write_text(done.out, encoding="utf-8")
    out = tmp_path / "report.html"
    found = run("report", small, "--eval", tmp_path / "losses.json", "-o", out, "--json")
    assert (found.status, found.err) == (0, "")
    task, evaluation = found.json["task"], done.json
    for own, measured in zip(task["measured"], evaluation["measured"], strict=True):
        assert {key: own[key] for key in own if key != "is_own"} == {
            key: measured[key] for key in own if key != "is_own"
        }
    assert [each["is_own"] for each in task["measured"]] == [False, False, True]
    assert task["answers"] == evaluation["continuations"]
    assert (task["rows"], task["tokens"], task["reference"]) == (4, 17, lora.name)
    page = out.read_text(encoding="utf-8")
    for each in evaluation["measured"]:
        assert f"{each['loss']:.4f}" in page
    assert f"it keeps {evaluation['measured'][2]['kept']:.1%}" in page
    evaluated = nola_codec.evaluate(base, [lora, small], rows, generate=1, max_new_tokens=3)
    again = nola_codec.report(small, evaluation=asdict(evaluated)).task
    assert again is not None
    assert json.loads(json.dumps(asdict(again))) == task


def test_what_is_printed(run: Run, base: Path, lora: Path, small: Path, rows: Path) -> None:
    done = run("eval", "--base", base, small, lora, "--data", rows, "--generate", 1, "--max-new-tokens", 3)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "all 4 rows, 17 scored tokens; float32 on cpu"
    assert next(line for line in lines if line.startswith(lora.name)).endswith("reference")
    assert next(line for line in lines if line.startswith("small.nola ")).endswith("%")
    assert any(line.startswith("small.nola keeps ") for line in lines)
    assert any(line.startswith(f"{lora.name} lowers the loss by 0.1576 ± ") for line in lines)
    assert "prompt 1: the cat" in lines
    assert max(map(len, lines)) <= 80


def test_a_tolerance(run: Run, base: Path, lora: Path, small: Path, rows: Path) -> None:
    options = ["eval", "--base", base, lora, small, "--data", rows, "--json", "--max-loss-gap"]
    done = run(*options, "10")
    assert (done.status, done.json["ok"], done.json["excesses"]) == (0, True, [])
    done = run(*options, "0.0001")
    assert (done.status, done.json["ok"]) == (1, False)
    assert done.err.startswith("nola-codec: small.nola: its loss is ")
    assert done.err.endswith(f" above that of {lora.name}, and the largest gap allowed is 0.0001\n")
    done = run("eval", "--base", base, small, "--data", rows, "--max-loss-gap", "1")
    assert done.status == 2
    assert "needs a reference" in done.err


def test_the_same_bits_as_a_decoded_directory(base: Path, small: Path, lora: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from nola_codec.integrations.evaluation.live_base import LiveBase
    from nola_codec.integrations.evaluation.subjects import open_subjects

    ids = torch.tensor([[2, 3, 4, 5, 6, 7]])
    plain = AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits
    nola_codec.decode(small, tmp_path / "again")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "again")
    wanted = model(input_ids=ids).logits
    live = LiveBase(base, "float32", "cpu")
    subjects = open_subjects([lora, small, lora], base, tmp_path / "folder", None)
    found = []
    for subject in subjects:
        with subject.put_into(live, tmp_path / "whole") as put:
            found.append(put(input_ids=ids).logits)
        assert torch.equal(live.model(input_ids=ids).logits, plain)
    assert torch.equal(found[1], wanted)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("change", ["biases", "pissa"])
def test_an_adapter_that_changes_the_model_itself(change: str, base: Path, lora: Path, tmp_path: Path) -> None:
    """PEFT loads biases into the layers of the model, and takes components out of the weights for PiSSA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from nola_codec.integrations.evaluation.live_base import LiveBase

    own = tmp_path / "base"
    config = LlamaConfig.from_pretrained(base, attention_bias=change == "biases")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(own)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / file, own / file)
    options: dict[str, Any] = {"bias": "all"} if change == "biases" else {"init_lora_weights": "pissa"}
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(own), LoraConfig(target_modules=["q_proj"], **options))
    if change == "biases":
        with torch.no_grad():
            tuned.base_model.model.model.layers[0].self_attn.q_proj.base_layer.bias += 1
    tuned.save_pretrained(tmp_path / "lora")
    live = LiveBase(own, "float32", "cpu")
    ids = torch.tensor([[2, 3, 4]])
    plain, first = live.model(input_ids=ids).logits, live.model
    with live.with_adapter(tmp_path / "lora") as model:
        wanted = tuned.eval()(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, wanted)
    assert live.model is not first
    assert torch.equal(live.model(input_ids=ids).logits, plain)


@pytest.mark.parametrize("dialect", ["mlx", "gguf"])
def test_other_dialects(dialect: str, base: Path, lora: Path, small: Path, rows: Path, tmp_path: Path) -> None:
    again = nola_codec.decode(small, tmp_path / dialect, format=dialect, base=base)
    found = nola_codec.evaluate(base, [small, lora, again], rows)
    assert found.reference == lora.name
    assert found.measured[3].loss == pytest.approx(found.measured[1].loss, rel=1e-6)
    assert found.measured[3].kind == "adapter"


def test_a_whole_model_and_its_change(base: Path, rows: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tuned = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for line in rows.read_text().splitlines():
        ids = tokenizer("{prompt} {completion}".format(**json.loads(line)), return_tensors="pt")["input_ids"]
        tuned(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        for weight in tuned.model.layers.parameters():
            weight -= 0.02 * weight.grad
    tuned.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    nola_codec.encode_delta(tmp_path / "tuned", base, tmp_path / "change.nola", nmse=0.1)
    found = nola_codec.evaluate(base, [tmp_path / "tuned", tmp_path / "change.nola"], rows)
    assert [each.kind for each in found.measured] == ["base", "model", "change"]
    assert found.measured[1].loss == pytest.approx(mean_loss(tmp_path / "tuned", None, rows), rel=1e-5)
    merged = nola_codec.decode(tmp_path / "change.nola", tmp_path / "merged", base=base)
    assert found.measured[2].loss == pytest.approx(mean_loss(merged, None, rows), rel=1e-5)
    assert found.measured[1].loss < found.measured[2].loss < found.measured[0].loss


def test_continuations_are_those_of_transformers(base: Path, lora: Path, rows: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "prompts.txt").write_text("the cat sat\na dog\n")
    found = nola_codec.evaluate(base, [lora], rows, prompts=tmp_path / "prompts.txt", max_new_tokens=5)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora)
    for each, prompt in zip(found.continuations, ("the cat sat", "a dog"), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(input_ids=ids, attention_mask=ids * 0 + 1, do_sample=False, max_new_tokens=5,
                              pad_token_id=1)  # fmt: skip
        assert (each.prompt, each.expected) == (prompt, "")
        assert each.texts[1] == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    (row,) = nola_codec.evaluate(base, [lora], rows, generate=1, max_new_tokens=2).continuations
    assert (row.prompt, row.expected) == ("the cat", "sat on a mat")


def test_rows_that_do_not_fit(base: Path, lora: Path, tmp_path: Path) -> None:
    lines = ["the cat sat on a mat", "the"] + ["a dog ran"] * 8
    (tmp_path / "rows.txt").write_text("\n".join(lines))
    found = nola_codec.evaluate(base, [lora], tmp_path / "rows.txt", max_tokens=4)
    assert (found.rows, found.rows_in_file, found.tokens) == (10, 10, 3 + 1 + 8 * 3)
    assert "1 rows are longer than 4 tokens, and their ends are not scored" in found.notes
    few = nola_codec.evaluate(base, [lora], tmp_path / "rows.txt", max_rows=3, seed=1)
    assert (few.rows, few.rows_in_file, few.reference) == (3, 10, lora.name)
    assert str(few).startswith("3 of 10 rows, ")
    with pytest.raises(nola_codec.EncodeError, match="no row has a scored token within its first 1 tokens"):
        nola_codec.evaluate(base, [lora], tmp_path / "rows.txt", max_tokens=1)


def test_numpy_runs_no_model(run: Run, base: Path, lora: Path, rows: Path) -> None:
    done = run("eval", "--base", base, lora, "--data", rows, "--device", "numpy")
    assert done.status == 2
    assert "a model runs in PyTorch" in done.err


def test_what_does_not_fit_is_refused_before_anything_is_measured(
    base: Path, lora: Path, rows: Path, tmp_path: Path
) -> None:
    """A newcomer waited for the loss of the base model, and read then that the second adapter is of another model."""
    other = tmp_path / "other"
    shutil.copytree(lora, other)
    config = json.loads((other / "adapter_config.json").read_text())
    config |= {"target_modules": ["query"], "base_model_name_or_path": "somebody/else"}
    (other / "adapter_config.json").write_text(json.dumps(config))
    stages = set()
    with pytest.raises(nola_codec.AdapterError) as refused:
        nola_codec.evaluate(base, [lora, other], rows, progress=lambda stage, done, total: stages.add(stage))
    assert refused.value.code == "base-mismatch"
    assert "loading the adapters" in stages
    assert not any(stage.startswith("measuring") for stage in stages)


def test_an_adapter_that_gains_nothing(run: Run, base: Path, adapter: Path, small: Path, rows: Path) -> None:
    """The adapter of random numbers fits the shapes of the first layers, and spoils the model."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    keys = ("q_proj",)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors = {key: tensor for key, tensor in tensors.items() if any(name in key for name in keys)}
    kept = {key: (tensor[:48] if "lora_B" in key else tensor) for key, tensor in tensors.items()}
    save_file(kept, adapter / "adapter_model.safetensors")
    done = run("eval", "--base", base, adapter, small, "--data", rows, "--json")
    assert done.status == 0, done.err
    assert "does not surely lower the loss" in done.err
    assert done.json["measured"][2]["kept"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", "PEFT cannot load it: "),
        ("unexpected", "the model has no place for 4 tensors of it: "),
        ("missing", "it lacks 1 tensors that the model needs: "),
        ("layers", "PEFT cannot load it: Target modules"),
        ("prompts", "PROMPT_TUNING changes the inputs of a model"),
    ],
)
def test_an_adapter_that_does_not_fit(
    change: str, message: str, run: Run, base: Path, lora: Path, rows: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(lora / "adapter_model.safetensors")
    config = json.loads((lora / "adapter_config.json").read_text())
    first = min(tensors)
    if change == "shape":
        tensors[first] = tensors[first][:, :-1].copy()
    elif change == "unexpected":
        config["target_modules"] = ["q_proj", "v_proj"]
    elif change == "missing":
        del tensors[first]
    elif change == "layers":
        config["target_modules"] = ["query"]
    else:
        config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    folder = tmp_path / "lora"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    done = run("eval", "--base", base, folder, "--data", rows)
    assert done.status == 3, done.out
    assert message in done.err
    assert done.err.startswith("nola-codec: lora: ")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model_index.json": "{}"}, "expected a causal language model, found a pipeline of Diffusers"),
        (
            {"config.json": '{"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}'},
            "expected a causal language model, found RobertaForSequenceClassification",
        ),
        (None, "no such directory"),
    ],
)
def test_a_base_that_is_no_language_model(
    files: dict[str, str] | None, message: str, run: Run, lora: Path, rows: Path, tmp_path: Path
) -> None:
    if files is not None:
        (tmp_path / "base").mkdir()
        for name, text in files.items():
            (tmp_path / "base" / name).write_text(text)
    done = run("eval", "--base", tmp_path / "base", lora, "--data", rows)
    assert (done.status, done.err.split("[")[-1]) == (3, "base-model]\n")
    assert message in done.err


def test_wrong_calls(run: Run, base: Path, lora: Path, rows: Path) -> None:
    for options, message in (
        ({"max_rows": 0}, "max_rows: expected a positive number, found 0"),
        ({"dtype": "f8"}, "dtype: expected one of f32, bf16, f16"),
        ({"generate": -1}, "generate: expected a number from 0 to 1000"),
    ):
        with pytest.raises(nola_codec.NolaError, match=message) as caught:
            nola_codec.evaluate(base, [lora], rows, **options)  # type: ignore[arg-type]
        assert caught.value.code == "option"
    with pytest.raises(nola_codec.NolaError, match="expected a list of paths"):
        nola_codec.evaluate(base, str(lora), rows)
    done = run("eval", "--base", base, "nowhere", "--data", rows)
    assert (done.status, done.err) == (3, "nola-codec: nowhere: no such file or directory [not-found]\n")
    assert run("eval", "--base", base, "--data", rows).status == 2


def test_urls(base: Path, lora: Path, small: Path, rows: Path) -> None:
    places = [path.as_uri() for path in (base, lora, small, rows)]
    found = nola_codec.evaluate(places[0], [places[1], places[2]], places[3])
    assert found.measured == nola_codec.evaluate(base, [lora, small], rows).measured
