"""The rivals that are trained: their factors are those of the real library or of plain algebra, and training works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from rivals.lora_xs import LoraXs, leading  # noqa: E402
from rivals.text import Row, TextTask, shuffled  # noqa: E402
from rivals.training import Budget, arrays, linear_layers, train  # noqa: E402
from rivals.uni_lora import UniLora  # noqa: E402
from task_peers import added  # noqa: E402


class TinyTask(TextTask):
    """A tiny model, and rows of token ids that follow each other."""

    def __init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50}
        self.model: Any = LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval().requires_grad_(False)

    def rows(self, split: str = "", start: int = 0, stop: int = 20) -> list[Row]:
        return [([i % 50 for i in range(k, k + 12 + k % 3)], 4) for k in range(start, stop)]


@pytest.fixture(scope="module")
def task() -> TinyTask:
    return TinyTask()


def test_the_loss_is_that_of_e2e_loss(task: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    import e2e_loss  # on the path once the modules above are imported

    class Tokenizer:
        eos_token_id = 7

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) % 50 for letter in text]}

    pairs = [("name[x]", "a text"), ("area[there], food[y]", "one more of these texts"), ("a", "b")] * 7
    monkeypatch.setattr(e2e_loss, "rows", lambda split, count: pairs[:count])
    task._tokenizer = Tokenizer()
    rows = TextTask.rows(task, "test", 0, 20)
    assert task.loss(rows) == pytest.approx(e2e_loss.loss(task.model, Tokenizer(), pairs[:20]), rel=1e-5)


def test_rows_come_once_before_any_comes_again() -> None:
    rows: list[Row] = [([i], 0) for i in range(10)]
    steps = list(shuffled(rows, 3, 7, 3))
    first = [ids[0] for step in steps[:3] for ids, _ in step]
    assert len(set(first)) == 9
    assert steps == list(shuffled(rows, 3, 7, 3))
    assert steps != list(shuffled(rows, 4, 7, 3))


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16)])
def test_leading_vectors_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    p, q = leading(weight, 5)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close((p @ q).double(), (u[:, :5] * s[:5]) @ vh[:5], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(p.T @ p, torch.eye(5), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 asks it
def test_uni_lora_has_the_factors_of_peft(task: TinyTask) -> None:
    from peft import UniLoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    form = UniLora(task.model, 300, seed=5)
    vector = form.parameters()[0][0]
    config = UniLoraConfig(r=4, proj_seed=5, theta_d_length=300, target_modules="all-linear")
    theirs: Any = get_peft_model(LlamaForCausalLM(task.model.config), config)
    theirs.base_model.unilora_theta_d["default"].data.copy_(vector.detach().ravel())
    layers = {
        name: layer for name, layer in theirs.base_model.model.named_modules() if hasattr(layer, "unilora_theta_d")
    }
    made = form.factors()
    assert set(made) == set(layers)
    for name, (b, a) in made.items():
        torch.testing.assert_close(b @ a, layers[name].get_delta_weight("default"), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kind", ["xs", "uni"])
def test_training_lowers_the_loss_and_the_file_holds_it(kind: str, task: TinyTask) -> None:
    form = LoraXs(task.model, 6) if kind == "xs" else UniLora(task.model, 400, seed=0)
    rows = task.rows()
    before = task.loss(rows)
    train(task, form, rows, Budget(0.05, steps=40, rows=4))
    size, fine = form.write(8)
    small, coarse = form.write(2)
    losses = []
    for factors in (form.factors(), fine, coarse):
        with added(dict(task.model.named_parameters()), arrays(factors)):
            losses.append(task.loss(rows))
    assert losses[0] < before - 0.02
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert losses[2] < before + 0.01
    assert small < size < 60 + 1.1 * form.parameters()[0][0].numel()
    assert task.loss(rows) == pytest.approx(before, abs=1e-6)
    assert len(linear_layers(task.model)) == len(fine) == 14


def test_a_second_call_takes_what_is_kept(task: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rivals import trained

    monkeypatch.setenv("NOLA_CACHE", str(tmp_path))
    monkeypatch.setattr(trained.results, "KEPT", tmp_path)
    monkeypatch.setattr(trained, "WHOLE", {"steps": 6, "rows": 2})
    monkeypatch.setattr(trained, "TRIAL", {"steps": 2, "rows": 2})
    monkeypatch.setattr(TinyTask, "training_rows", lambda self: self.rows())
    first = trained.measured("Uni-LoRA", 100, 4, 0, 8, task)
    tried = {r["settings"]["rate"]: r["figures"]["loss"] for r in trained.results.read(trained.NAME)
             if r["settings"]["steps"] == 2}  # fmt: skip
    best = first["settings"]["rate"]
    place = trained.LADDER.index(best)
    assert tried[best] == min(tried.values())
    assert {0.01, 0.03, 0.1, *trained.LADDER[max(0, place - 1) : place + 2]} <= set(tried)
    monkeypatch.setattr(trained, "train", lambda *_: pytest.fail("trained again"))
    assert trained.measured("Uni-LoRA", 100, 4, 0, 8, task) == first
    other = trained.measured("Uni-LoRA", 100, 8, 0, 8, task)
    assert other["figures"]["bytes"] > first["figures"]["bytes"]
    assert np.isfinite(other["figures"]["loss"])
