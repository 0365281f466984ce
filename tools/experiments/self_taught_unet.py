"""An adapter of Stable Diffusion 1.5 teaches its own code on a UNet: the error of the output, at equal bytes.

    python tools/experiments/self_taught_unet.py [--sizes 20KB] [--seeds 0] [--steps 40]

The adapter is a real one (sd15_catundchat of the further data, 128 attention layers, rank 4). The UNet has the
configuration of Stable Diffusion 1.5 (859.5M parameters) and random weights, since no real ones lie in a package. It is
made once, in .cache/sd15-random-unet (1.7 GB). `encode --fit task --data self` draws noised latents of 16x16 and text
embeddings at random. The error is the squared error of the output on other draws, as a share of the squared change that
the adapter makes; "weights alone" is the same file before the training.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import results
from page_tables.self_taught_unet import NAME, errors
from real_data import adapter, cache_dir


def make_unet(folder: Path) -> Path:
    """The folder of the UNet; it is made if it is not there."""
    import diffusers
    import torch

    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)  # half the memory and the file
        try:
            model: Any = diffusers.UNet2DConditionModel(  # type: ignore[no-untyped-call]
                cross_attention_dim=768, sample_size=64
            )
        finally:
            torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder)
    return folder


def encode_and_measure(folder: Path, source: Path, size: str, seed: int, steps: int) -> dict[str, Any]:
    """Bytes of a file, and the errors of the output before and after the training; a stopped one goes on."""
    import nola_codec
    from nola_codec.integrations.self_teaching import self_tuner
    from nola_codec.training import TaskSettings

    def show(stage: str, done: int, total: int) -> None:
        print(f"{stage} {done}/{total}", end="\r", file=sys.stderr, flush=True)

    checkpoint = results.working_file(f"{NAME}-{size}-{seed}-{steps}").with_suffix(".training")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    settings = TaskSettings(steps=steps, seed=seed, every=10, checkpoint=checkpoint)
    tuner = self_tuner(make_unet(folder), source, settings=settings, progress=show)
    data, report = nola_codec.encode_bytes(source, size=size, seed=seed, fit="task", tuner=tuner)
    task = report.task
    assert task is not None
    checkpoint.unlink(missing_ok=True)
    return {"bytes": len(data), "base": task.base, "start": task.start, "file": task.file, "best": task.steps}


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["20KB"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=40)
    results.add_options(parser)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    source = adapter("sd15_catundchat")
    folder = cache_dir() / "sd15-random-unet"
    for seed in arguments.seeds:
        for size in arguments.sizes:
            found = results.measure(
                NAME, {"size": size, "seed": seed, "steps": arguments.steps},
                partial(encode_and_measure, folder, source, size, seed, arguments.steps),
                anew=arguments.anew,
            )  # fmt: skip
            print(f"{size} seed {seed}: {found['figures']}", file=sys.stderr, flush=True)
    print(errors(results.read(NAME)))


if __name__ == "__main__":
    main()
