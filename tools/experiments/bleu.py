"""BLEU of greedy texts for meanings of E2E's test set: LoRA, NOLA, and the codec's files of the E2E adapter.

    python tools/experiments/bleu.py [--meanings 400] [--only NAME ...] [--anew] [--threads 1]

The texts are for the first distinct meanings of the shuffled test set, each against all of its references, by
`sacrebleu`'s corpus BLEU. Texts are made greedily in batches of 32, with a cache of keys and values, in float32, and
end at the first newline. The runs of training are those of `methods.py`, and are done if they are missing; so is each
file. "16 prompts" is a file of `self_taught.py`, and the other files are from the weights alone. Results of fewer
meanings are kept apart.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import e2e
import results
import self_taught
import torch
from e2e import Run, Task, cache_dir
from real_data import adapter
from runs import ROUNDED, lora, nola

SIZES = ("50KB", "20KB", "10KB", "5KB")
LONGEST = 72
BATCH = 32
TRAINED: dict[str, Run] = {
    "LoRA r=8": lora(8), "LoRA r=1": lora(1), "NOLA k=128": nola(128, **ROUNDED), "NOLA k=32": nola(32, **ROUNDED),
}  # fmt: skip
"""The runs of `methods.py` with seed 0, as they are there, so that the results are the same ones."""
TAUGHT = {"5KB, 16 prompts": {"door": "prompts", "size": "5KB", "steps": 100, "seed": 0}}
NAMES = ("base", "adapter", *SIZES, *TAUGHT, *TRAINED)


def meanings_and_references(task: Task, count: int) -> list[tuple[str, list[str]]]:
    """Return the first distinct meanings of the test set, each with all of its references."""
    references: dict[str, list[str]] = {}
    for meaning, text in task.test_rows:
        references.setdefault(meaning, []).append(text)
    return list(references.items())[:count]


@torch.no_grad()
def generate(task: Task, model: Any, meanings: list[str]) -> list[str]:
    """Return a greedy text for each meaning."""
    model.eval()
    tokenizer = task.tokenizer
    order = sorted(range(len(meanings)), key=lambda index: len(meanings[index]))  # little padding
    texts = [""] * len(meanings)
    tokenizer.padding_side = "left"
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        given = tokenizer([f"data: {meanings[i]}\ntext:" for i in chosen], return_tensors="pt", padding=True)
        made = model.generate(
            **given, max_new_tokens=LONGEST, do_sample=False, num_beams=1, pad_token_id=tokenizer.eos_token_id
        )
        for index, row in zip(chosen, made[:, given["input_ids"].shape[1] :], strict=True):
            texts[index] = str(tokenizer.decode(row, skip_special_tokens=True)).split("\n")[0].strip()
    tokenizer.padding_side = "right"
    return texts


def score(texts: list[str], references: list[list[str]]) -> float:
    """Return the corpus BLEU of texts, 0 to 100, each against all of its references."""
    import sacrebleu

    most = max(map(len, references))
    # None, not an empty text, which would count as a reference of no words for the brevity penalty.
    columns: Any = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(texts, columns).score)


def measure(name: str, count: int) -> dict[str, Any]:
    """Return the BLEU of one model."""
    from peft import PeftModel

    import nola_codec
    from nola_codec.training import load

    task = Task()
    with tempfile.TemporaryDirectory() as folder:
        model: Any = task.model
        if name in TRAINED:
            run = TRAINED[name]
            if not any(path.exists() for path in _trained_files(run)):
                e2e.results([run], anew=True)
            path = next(path for path in _trained_files(run) if path.exists())
            model = PeftModel.from_pretrained(model, str(path)) if path.is_dir() else load(model, path)
        elif name != "base":
            source = adapter("smollm2_e2e")
            if name != "adapter":
                file = Path(folder) / "made.nola"
                if name in TAUGHT:
                    file, _ = self_taught.make(TAUGHT[name], task)
                else:
                    nola_codec.encode(source, file, size=name)
                source = Path(folder) / "decoded"
                nola_codec.decode(file, source)
            model = PeftModel.from_pretrained(model, str(source))
        chosen = meanings_and_references(task, count)
        texts = generate(task, model, [meaning for meaning, _ in chosen])
    kept = cache_dir() / "experiments" / "texts" / f"{name.replace(' ', '_')}-{count}.txt"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return {"bleu": score(texts, [references for _, references in chosen])}


def _trained_files(run: Run) -> tuple[Path, Path]:
    path = e2e.trained_path(run)
    return path, path.with_suffix("")


def main() -> None:
    """Measure what is missing, and print the table."""
    from page_tables.bleu import scores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meanings", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--threads", type=int, default=1)
    results.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only:
        settings: dict[str, Any] = {"model": name, "meanings": options.meanings}
        if name in TRAINED:
            settings["run"] = TRAINED[name]
        results.measure("bleu", settings, partial(measure, name, options.meanings), anew=options.anew)
    print(scores(results.read("bleu")))


if __name__ == "__main__":
    main()
