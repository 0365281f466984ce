"""Rules for what an error costs: the loss of files of one size, made by several gammas, limits of noise and boosts.

    python tools/experiments/rules.py e2e --rules plain limit=6 "ratio=falling rows=0.01" --sizes 5KB 10KB --seeds 0 1
    python tools/experiments/rules.py banking77 --rules plain gamma=5,5

A rule is `plain`, or the settings that differ from it, which are

    limit=NUMBER    the greatest noise, over the energy of the delta                                plain: 3
    rows=NUMBER     the greatest squared norm of the noise in a row of the deltas, on average; it replaces the limit,
                    but stands for one from 0.5 to 6
    ratio=NUMBER    the ratio between the gammas of lora_A and of lora_B; `falling` makes it fall from 3 to 1 when
                    gammas fall from 60 and 20                                                      plain: 3
    gamma=U,V       these gammas, whatever the noise
    boost=NUMBER    amplitudes rise by the surviving share of the energy to the power of -boost     plain: 0.5
    power=NUMBER    a component weighs s^power                                                      plain: 2

`--times` multiplies the decoded delta. The task e2e is SmolLM2-135M with `smollm2_e2e`, in nats a token. banking77 is
MiniLM with the adapter of `tools/bench/second_task.py --train`, in nats a row. `--split` says which rows: those of the
tables are `test`, and rules are chosen on others, which are rows of `valid` for e2e, and for banking77 rows of the test
set that no table uses. Results are kept (`results.py`); the tables are in docs/experiments/rules.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import results
from real_data import ROOT, adapter, cache_dir

sys.path.insert(0, str(ROOT / "tools" / "bench"))
from task_peers import Deltas, added, base_directory

from nola_codec.adapters import read
from nola_codec.arrays import NUMPY
from nola_codec.encoder.drafts import make_drafter
from nola_codec.encoder.job import EncodeJob, open_job
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.pipeline import canonical_form
from nola_codec.encoder.rate_control import RateTarget, draft_for_size, with_noise_limit
from nola_codec.encoder.reconstruct import decode_rung
from nola_codec.fit.allocation import EFFECTIVE, Objective
from nola_codec.fit.canonical_form import CanonicalForm
from nola_codec.model.adapter import Adapter
from nola_codec.sizes import parse_size

PLAIN = {"limit": "3", "ratio": "3", "boost": "0.5", "power": "2"}
"""The settings of the rule `plain`, which was that of the encoder before `rows` was."""
ROWS_RANGE = (0.5, 6.0)
"""The least and the greatest limit that the setting `rows` may stand for."""


def read_rule(text: str) -> dict[str, str]:
    """Return the settings of a rule."""
    given = {} if text == "plain" else dict(pair.split("=") for pair in text.split())
    if not set(given) <= {*PLAIN, "gamma", "rows"}:
        sys.exit(f"no rule {text!r}; see --help")
    return PLAIN | given


def objectives_of(rule: dict[str, str]) -> tuple[Objective, ...]:
    """Return the objectives that a rule chooses from, each quieter than the one before."""
    boost = float(rule["boost"])
    if "gamma" in rule:
        u, v = map(float, rule["gamma"].split(","))
        return (Objective("effective", (u, v, max(u, v), 1.0), boost=boost),)
    made = []
    for factor in (2 ** (-step / 4) for step in range(18)):
        u = 20 * factor
        v = max(u, 3 * u * factor) if rule["ratio"] == "falling" else max(1.0, float(rule["ratio"]) * u)
        made.append(Objective("effective", (u, v, 60 * factor, 1.0), boost=boost))
    return tuple(made)


def cap_of(rule: dict[str, str], form: CanonicalForm) -> float:
    """Return the greatest noise of a rule, over the energy of the delta."""
    if "rows" not in rule:
        return float(rule["limit"])
    first = np.unique(form.record, return_index=True)[1]
    rows, energy = float(form.lengths[0, first].sum()), float((form.strength**2).sum())
    return min(max(float(rule["rows"]) * rows / energy, ROWS_RANGE[0]), ROWS_RANGE[1])


def encode(job: EncodeJob, form: CanonicalForm, rule: dict[str, str], size: int) -> tuple[Deltas, dict[str, Any]]:
    """Return the decoded deltas of a file of a size, and what there is to say of the file."""
    target = RateTarget(size, is_size=True, limit=size)
    cap, power = cap_of(rule, form), float(rule["power"])
    if power != 2:
        energy, weight = form.strength**2, form.strength**power
        form = replace(form, strength=np.sqrt(weight * (energy.sum() / weight.sum())), energy=energy)
    drafter = with_noise_limit(make_drafter(job, form, EFFECTIVE), target, objectives_of(rule), cap)
    draft = draft_for_size(drafter, target)
    deltas: Deltas = {}
    for item, record in zip(job.items, decode_rung(draft.content, job.envelope, 0), strict=True):
        b, a = record.float32(NUMPY)
        deltas[item.name] = (b * item.error_gain, a)
    u, v, *_ = draft.plan.objectives[-1].gamma
    facts = {"bytes": draft.bytes, "gamma": [round(u, 2), round(v, 2)], "kept": len(draft.plan.kept),
             "noise": float(draft.plan.noise[-1]), "effective_error": draft.error}  # fmt: skip
    return deltas, facts


def e2e_loss_of(split: str, rows: int) -> Callable[[Deltas], float]:
    """Return a function from deltas to the loss on E2E: that of `e2e_loss`, with logits for the scored tokens alone."""
    import e2e_loss
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = base_directory()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = dict(model.named_parameters())
    pairs = sorted(e2e_loss.rows(split, rows), key=lambda pair: len(pair[0]) + len(pair[1]))  # less padding
    batches = [e2e_loss.batch(tokenizer, pairs[start : start + 8]) for start in range(0, len(pairs), 8)]

    def loss(deltas: Deltas) -> float:
        total = tokens = 0.0
        with added(weights, deltas), torch.no_grad():
            for batch in batches:
                hidden = model.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, :-1]
                labels = batch["labels"][:, 1:]
                scored = labels != -100
                logits = model.lm_head(hidden[scored])
                total += torch.nn.functional.cross_entropy(logits, labels[scored], reduction="sum").item()
                tokens += int(scored.sum())
        return total / tokens

    return loss


def banking77_loss_of(split: str, rows: int, folder: Path) -> Callable[[Deltas], float]:
    """Return a function from deltas to the loss on Banking77; rows that no table uses come after the first 1024."""
    from second_task import BASE, Task

    task = Task(folder, base_directory(BASE), rows, skip=0 if split == "test" else 1024)
    return lambda deltas: task.measure(deltas)[0]


def times(deltas: Deltas, factor: float) -> Deltas:
    """Return deltas times a factor."""
    return {name: (b * factor, a) for name, (b, a) in deltas.items()}


def full_deltas(source: Adapter) -> Deltas:
    """Return the deltas of the adapter itself."""
    return {module.name: (module.lora_B * module.error_gain, module.lora_A) for module in source.modules}


def main() -> None:
    """Measure what is missing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["e2e", "banking77"])
    parser.add_argument("--rules", nargs="+", default=["plain"])
    parser.add_argument("--sizes", nargs="+", default=["5KB", "10KB", "20KB"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--times", nargs="+", type=float, default=[1.0])
    parser.add_argument("--split", choices=["valid", "other", "test"], help="rows to measure on; never test to choose")
    parser.add_argument("--rows", type=int, help="of these rows  [default: 24 of e2e, 512 of banking77]")
    parser.add_argument("--adapter", type=Path, default=cache_dir() / "banking77", help="what second_task.py trained")
    results.add_options(parser)
    options = parser.parse_args()
    is_e2e = options.task == "e2e"
    split = options.split or ("valid" if is_e2e else "other")
    rows = options.rows or (24 if is_e2e else 512)
    source = read(adapter("smollm2_e2e") if is_e2e else options.adapter / "adapter")
    measure_loss: list[Callable[[Deltas], float]] = []  # loaded when the first figure is missing
    forms: dict[int, CanonicalForm] = {}  # of one seed

    def loss(deltas: Deltas) -> float:
        if not measure_loss:
            import torch

            torch.set_num_threads(1)
            made = e2e_loss_of(split, rows) if is_e2e else banking77_loss_of(split, rows, options.adapter)
            measure_loss.append(made)
        return measure_loss[0](deltas)

    def measure_whole(deltas: Deltas) -> dict[str, Any]:
        return {"loss": loss(deltas)}

    def measure(settings: dict[str, Any]) -> dict[str, Any]:
        seed, size = settings["seed"], settings["size"]
        job = open_job(source, EncodeOptions(size=size, seed=seed))
        if seed not in forms:
            forms.clear()
            forms[seed] = canonical_form(job)
        deltas, facts = encode(job, forms[seed], read_rule(settings["rule"]), size)
        return {"loss": loss(times(deltas, settings["times"])), **facts}

    found = []
    shared = {"task": options.task, "split": split, "rows": rows}
    for what, deltas in (("base", {}), ("adapter", full_deltas(source))):
        settings = {**shared, "rule": what}
        found.append(results.measure("rules", settings, partial(measure_whole, deltas), anew=options.anew))
    for seed in options.seeds:
        for rule in options.rules:
            for size in map(parse_size, options.sizes):
                for factor in options.times:
                    settings = {**shared, "rule": rule, "size": size, "seed": seed, "times": factor}
                    found.append(results.measure("rules", settings, partial(measure, settings), anew=options.anew))
                    print(settings, found[-1]["figures"], file=sys.stderr, flush=True)
    from page_tables.rules import losses

    print(losses(found, options.task, split, rows))


if __name__ == "__main__":
    main()
