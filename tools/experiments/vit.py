"""A small ViT, adapted with ten images a class (NOLA, Table 6, in small): linear probe, LoRA, NOLA, full training.

    python tools/experiments/vit.py [--seeds 0 1 2] [--data FOLDER] [--anew]

The base is a ViT of Transformers (four layers of width 96, patches of 7 x 7) that learns the first five classes of
Fashion-MNIST and the quarter turn of the image, 20 classes in all. It is adapted to the other five classes, which it
has never seen, with ten images of each, and measured on all 5,000 test images of these classes. Each seed draws other
images. LoRA and NOLA change all linear layers; the new head is always trained, and counts. The rate of each way is the
best of `RATES`, uphill from one, by the accuracy on 2,000 other training images after training with a draw that no
seed uses.

The images are Debian's: `apt install dataset-fashion-mnist`.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import results
import torch
from fashion_mnist import FOLDER, PACKAGE, images
from gradient_shares import share_out_num_basis
from networks import Images
from rates import choose_rate
from real_data import cache_dir
from report import say
from torch.nn import functional

STEPS, SHOTS, CHOICE_SEED, CHOICE_IMAGES = 80, 10, 1000, 2000
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WAYS: list[dict[str, Any]] = [
    {"way": "linear"},
    {"way": "lora", "rank": 1},
    {"way": "lora", "rank": 4},
    {"way": "nola", "rank": 4, "num_basis": 8},
    {"way": "nola", "rank": 4, "num_basis": 32},
    {"way": "nola", "rank": 4, "num_basis": 96},
    {"way": "nola", "rank": 4, "total": 384},
    {"way": "nola", "rank": 4, "total": 1536},
    {"way": "unilora", "rank": 4, "total": 384},
    {"way": "unilora", "rank": 4, "total": 1536},
    {"way": "full"},
]


def make_vit(classes: int) -> Any:
    """Return a fresh ViT for images (n, 1, 28, 28)."""
    from transformers import ViTConfig, ViTForImageClassification

    config: Any = ViTConfig
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    return ViTForImageClassification(config(image_size=28, patch_size=7, num_channels=1, num_labels=classes, **sizes))


def of_classes(data: Images, low: int) -> Images:
    """Return the images of five classes from `low` on, with labels from 0."""
    mine = (data.y >= low) & (data.y < low + 5)
    return Images(data.x[mine], data.y[mine] - low)


def make_base(data: Images, folder: Path, epochs: int = 3, batch: int = 128) -> dict[str, float]:
    """Train the base on the classes 0 to 4 and their quarter turns, and save it."""
    torch.manual_seed(0)
    model, first = make_vit(20), of_classes(data, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    total, step = epochs * (len(first.y) // batch), 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=total)
    for epoch in range(epochs):
        right = 0
        for picked in torch.randperm(len(first.y))[: total // epochs * batch].split(batch):
            turns = int(torch.randint(0, 4, ()))
            logits = model(pixel_values=first.x[picked].rot90(turns, (2, 3))).logits
            labels = 4 * first.y[picked] + turns
            loss = functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == labels).sum())
            step += 1
        say(f"base: epoch {epoch + 1} of {epochs}, accuracy {right / (total // epochs * batch):.2%} in training")
    model.save_pretrained(folder)
    return {"train_accuracy": right / (total // epochs * batch)}


def draw(data: Images, seed: int) -> tuple[Images, Images]:
    """Return ten images a class, and 2,000 other images, of the classes 5 to 9 of the training set."""
    mine = of_classes(data, 5)
    order = torch.randperm(len(mine.y), generator=torch.Generator().manual_seed(seed))
    shots = torch.cat([order[mine.y[order] == label][:SHOTS] for label in range(5)])
    others = order[~torch.isin(order, shots)][:CHOICE_IMAGES]
    return Images(mine.x[shots], mine.y[shots]), Images(mine.x[others], mine.y[others])


def prepare(base: Path, way: dict[str, Any], shots: Images) -> Any:
    """Return the base with a fresh head, and with what a way trains."""
    from peft import LoraConfig, UniLoraConfig, get_peft_model
    from transformers import ViTForImageClassification

    from nola_codec.training import parametrize

    model: Any = ViTForImageClassification.from_pretrained(base, num_labels=5, ignore_mismatched_sizes=True)
    linear = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    where: dict[str, Any] = {
        "target_modules": [name for name in linear if name != "classifier"], "modules_to_save": ["classifier"]
    }  # fmt: skip
    if way["way"] == "linear":
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
    if way["way"] == "unilora":
        config = UniLoraConfig(r=way["rank"], theta_d_length=way["total"], proj_seed=way["seed"], **where)
        return get_peft_model(model, config)
    if way["way"] in ("lora", "nola"):
        model = get_peft_model(model, LoraConfig(r=way["rank"], lora_alpha=2 * way["rank"], **where))
    if way["way"] == "nola":
        counts = way.get("num_basis")
        if "total" in way:
            functional.cross_entropy(model(pixel_values=shots.x).logits, shots.y).backward()
            counts = share_out_num_basis(model, way["total"])
            model.zero_grad(set_to_none=True)
        parametrize(model, num_basis=counts, seed=way["seed"])
    return model


def adapt(base: Path, way: dict[str, Any], data: Images, test: Images | None) -> dict[str, float]:
    """Train with ten images a class; return the accuracy on the test images, or on others if `test` is None."""
    from nola_codec.training import save

    torch.manual_seed(way["seed"])
    shots, others = draw(data, way["seed"])
    model = prepare(base, way, shots)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=way["lr"], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, way["lr"], total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        loss = functional.cross_entropy(model(pixel_values=shots.x).logits, shots.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    figures = {
        "accuracy": accuracy(model, test or others),
        "train_loss": loss.item(),
        "trained": sum(p.numel() for p in trained),
    }
    if way["way"] == "nola":
        with tempfile.TemporaryDirectory() as folder:
            figures["bytes"] = save(model, Path(folder) / "vit.nola")
    else:
        figures["bytes"] = 2 * figures["trained"]  # fp16
    return figures


@torch.no_grad()
def accuracy(model: Any, data: Images) -> float:
    """Return the share of images that a model gets right, in evaluation."""
    model.eval()
    chunks = zip(data.x.split(500), data.y.split(500), strict=True)
    return sum(int((model(pixel_values=x).logits.argmax(1) == y).sum()) for x, y in chunks) / len(data.y)


def main() -> None:
    """Measure what is missing, and print the table."""
    from page_tables.vit import methods

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=FOLDER, help=f"default: {FOLDER}, of the package {PACKAGE}")
    parser.add_argument("--threads", type=int, default=1)
    results.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, test = images(options.data, "train", None), of_classes(images(options.data, "t10k", None), 5)
    base = cache_dir() / "experiments" / "vit_base"
    anew = options.anew or not (base / "config.json").is_file()
    results.measure("vit", {"way": "base"}, partial(make_base, data, base), anew=anew)
    for way in WAYS:

        def measure_choice(lr: float, way: dict[str, Any] = way) -> float:
            run = {**way, "lr": lr, "seed": CHOICE_SEED, "measured_on": "choice"}
            figures = results.measure("vit", run, partial(adapt, base, run, data, None), anew=anew)["figures"]
            return float(figures["accuracy"])

        rate, tried = choose_rate(RATES, 1e-3 if way["way"] == "full" else 1e-2, measure_choice)
        say(f"accuracy by rate: { ({each: round(value, 4) for each, value in sorted(tried.items())}) }")
        for seed in options.seeds:
            run = {**way, "lr": rate, "seed": seed, "measured_on": "test"}
            figures = results.measure("vit", run, partial(adapt, base, run, data, test), anew=anew)["figures"]
            say(f"{run}: {figures['accuracy']:.2%}")
    print(methods(results.read("vit")))


if __name__ == "__main__":
    main()
