"""Ways to spend one budget of trained numbers on E2E: short runs that are compared on validation rows.

    python tools/experiments/allotment.py [NAME ...] [--seeds 0 1 2] [--anew]

A run trains for a few steps of 8 rows, and is measured on 96 rows of the validation set that no run is trained on. The
names are those of `WAYS`; without names, all are run that have no result.

lora       LoRA of rank 8: 45 times the numbers of the others
nola       NOLA as in the package: 128 coefficients for each factor, Adam on the coefficients
more       NOLA with eight times as many coefficients
rotated    NOLA with as many coefficients as numbers: LoRA, seen through the basis
projected  NOLA, where Adam's moments are those of the entries of the factors, and its step is projected onto the basis
allotted   NOLA, whose budget is shared out by the norms of the first gradients of lora_B (`gradient_shares.py`)
lora_B     NOLA with all coefficients for lora_B; lora_A stays as it was drawn
unilora    Uni-LoRA of PEFT (arXiv 2506.00799): one vector for the whole model
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import results
import torch
from e2e import Run, Task, fit, gradient_shares
from page_tables.allotment import ways

from nola_codec.training import CodedTensor, Coding, TensorGroup, parametrize

BUDGET = 53_760
"""Numbers: 128 for each of the 420 factors."""
RANK = 8
_COMMON: Run = {"steps": 30, "seed": 0}
_NOLA: Run = {**_COMMON, "lr": 0.005, "ratio": 4}

WAYS: dict[str, Run] = {
    "lora": {**_COMMON, "method": "lora", "lr": 0.003},
    "nola": {**_NOLA, "method": "nola"},
    "more": {**_NOLA, "method": "nola", "num_basis": 1024},
    "rotated": {**_COMMON, "method": "nola", "num_basis": 10**6, "lr": 0.003},
    "projected": {**_NOLA, "method": "nola", "projected": True},
    "allotted": {**_NOLA, "method": "nola", "allotted": True},
    "lora_B": {**_NOLA, "method": "nola", "only_B": True},
    "unilora": {**_COMMON, "method": "unilora", "lr": 0.02},
}


def lora_model(task: Task, rank: int = RANK) -> Any:
    """Return the model with a fresh LoRA on all linear layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(task.model, config)


def factors(model: Any) -> dict[str, tuple[Any, Any]]:
    """Return the linear layers (lora_B, lora_A) of each adapted module, by its path."""
    found = ((path, m) for path, m in model.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A)
    return {path: (m.lora_B["default"], m.lora_A["default"]) for path, m in found}


def code_lora_B(model: Any, num_basis: int, seed: int) -> None:
    """Code each lora_B with as many coefficients; lora_A is frozen as it was drawn."""
    from torch.nn.utils import parametrize as parametrization

    group = TensorGroup(Coding(seed=seed))
    for stream, (lora_B, lora_A) in enumerate(factors(model).values()):
        lora_A.weight.requires_grad_(False)
        synthesis = group.make_synthesis(stream, 0, lora_B.weight.numel(), num_basis)
        coded = CodedTensor(lora_B.weight.shape, synthesis, group)
        parametrization.register_parametrization(lora_B, "weight", coded)


class ProjectedAdam(torch.optim.Optimizer):
    """Adam on the entries of coded tensors; what it would add is projected onto the basis of each.

    The moments are those of dL/dy (n,) for y (n,) = gain * c (k,) @ G. The step of the coefficients is
    lr * sqrt(k / n) * gain * G @ u for Adam's step u (n,), so that coefficients move as far as under Adam.
    """

    def __init__(self, tensors: list[tuple[CodedTensor, torch.nn.Parameter, float]]) -> None:
        super().__init__([{"params": [p], "lr": rate, "tensor": tensor} for tensor, p, rate in tensors], {})
        self._grads: dict[int, torch.Tensor] = {}
        for tensor, _, _ in tensors:
            hooked: Any = tensor
            hooked._discard = self._keeper(tensor, tensor._discard)

    def _keeper(self, tensor: CodedTensor, discard: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
        def keep(grad: torch.Tensor) -> None:
            self._grads[id(tensor)] = grad
            discard(grad)

        return keep

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all tensors."""
        for group in self.param_groups:
            tensor, state = group["tensor"], self.state[group["params"][0]]
            grad = self._grads.pop(id(tensor)).reshape(-1)
            if not state:
                state.update(step=0, first=torch.zeros_like(grad), second=torch.zeros_like(grad))
            state["step"] += 1
            state["first"].lerp_(grad, 0.1)
            state["second"].mul_(0.999).addcmul_(grad, grad, value=0.001)
            first = state["first"] / (1 - 0.9 ** state["step"])
            second = state["second"] / (1 - 0.999 ** state["step"])
            wanted = first / (second.sqrt() + 1e-8)
            synthesis = tensor.synthesis
            share = math.sqrt(synthesis.num_basis / synthesis.length)
            group["params"][0].sub_(group["lr"] * share * synthesis.adjoint(wanted)[None])


def prepare(task: Task, run: Run) -> tuple[Any, torch.optim.Optimizer]:
    """Return the model to train, and its optimizer."""
    torch.manual_seed(run["seed"])
    if run["method"] == "unilora":
        from peft import UniLoraConfig, get_peft_model

        config = UniLoraConfig(r=RANK, theta_d_length=BUDGET, proj_seed=run["seed"], target_modules="all-linear",
                               unilora_dropout=0.0, init_theta_d_bound=run.get("bound", 0.02))  # fmt: skip
        model: Any = get_peft_model(task.model, config)
    else:
        model = lora_model(task)
        if run["method"] == "nola":
            _code(task, model, run)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rates = {id(p): run["lr"] * (run.get("ratio", 1) if "lora_B" in name else 1) for name, p in named}
    if run.get("projected"):
        coded = [m for m in model.modules() if hasattr(m, "parametrizations")]
        pairs = [(m.parametrizations.weight[0], m.parametrizations.weight.original) for m in coded]
        return model, ProjectedAdam([(tensor, p, rates[id(p)]) for tensor, p in pairs])
    groups = [{"params": [p for _, p in named if rates[id(p)] == rate], "lr": rate} for rate in set(rates.values())]
    return model, torch.optim.AdamW(groups, weight_decay=0.0)


def _code(task: Task, model: Any, run: Run) -> None:
    """Code the factors as a run says."""
    if run.get("allotted"):
        parametrize(model, num_basis=gradient_shares(task, model, BUDGET, run["seed"]), seed=run["seed"])
    elif run.get("only_B"):
        code_lora_B(model, BUDGET // len(factors(model)), run["seed"])
    else:
        parametrize(model, num_basis=run.get("num_basis", BUDGET // (2 * len(factors(model)))), seed=run["seed"])


def train(run: Run) -> dict[str, Any]:
    """Do a run, and return its figures."""
    torch.set_num_threads(1)
    task = Task()
    model, optimizer = prepare(task, run)
    times, losses = fit(task, model, run, optimizer)
    for module in model.modules():  # measured as trained, not as the 16 bits of a file: these runs write none
        if isinstance(module, CodedTensor):
            module.side = None
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_loss": sum(losses[-10:]) / len(losses[-10:]),
        "ms_per_step": 1000 * sorted(times)[len(times) // 2],
        "choice_loss": task.loss(model, task.choice_rows),
    }


def main() -> None:
    """Do the runs that are missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", type=json.loads, default={}, metavar="JSON", help="settings to change, such as the lr")
    results.add_options(parser)
    options = parser.parse_args()
    for seed in options.seeds:
        for name in options.names or WAYS:
            run = {**WAYS[name], **options.set, "seed": seed}
            results.measure("allotment", run, partial(train, run), anew=options.anew)
    print(ways(results.read("allotment")))


if __name__ == "__main__":
    main()
