"""Show the main job once on a real adapter, and explain each step: `make demo`.

The demo encodes an adapter of `examples/`, looks at the file, verifies it, compares it with its source, decodes it back
to PEFT, and lets the independent reference decoder read the same file. Where `examples/` is missing, a synthetic PEFT
adapter stands in. Everything made lies in `demo/`. The demo stops with an error at the first step that does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from real_data import EXAMPLES, ROOT
from safetensors.numpy import load_file, save_file

OUT = ROOT / "demo"
ADAPTER = "gptneo125m_movies"


def synthetic_adapter(folder: Path) -> Path:
    """Write a seeded PEFT LoRA of 12 layers whose spectra decay as those of trained ones do."""
    rng = np.random.default_rng(0)
    state = {}
    for layer in range(12):
        for module, rows in (("q_proj", 576), ("v_proj", 192)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            decay = np.exp(-0.35 * np.arange(8)) * rng.uniform(0.5, 1.5)
            state[f"{key}.lora_A.weight"] = rng.standard_normal((8, 576)).astype(np.float32) / 24
            state[f"{key}.lora_B.weight"] = (rng.standard_normal((rows, 8)) * decay).astype(np.float32) / 100
    folder.mkdir(parents=True)
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def source_adapter() -> Path:
    """The folder of the adapter to encode."""
    if (EXAMPLES / ADAPTER).is_dir():
        return EXAMPLES / ADAPTER
    print(f"There is no {EXAMPLES / ADAPTER}, so a synthetic adapter stands in.")
    return synthetic_adapter(OUT / "synthetic")


def command(*arguments: str | Path) -> str:
    """Show and run one command, show what it prints, and return it."""
    words = [os.path.relpath(word, ROOT) if isinstance(word, Path) else word for word in arguments]
    print(f"\n$ {' '.join(words)}", flush=True)
    if words[0] == "nola-codec":
        words[:1] = [sys.executable, "-m", "nola_codec"]
    elif words[0] == "python":
        words[0] = sys.executable
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print("\n".join("  " + line for line in done.stdout.rstrip().splitlines()), flush=True)
    if done.returncode:
        sys.exit(f"demo: the last command ended with status {done.returncode}")
    return done.stdout


def ask(*arguments: str | Path) -> dict[str, Any]:
    """Run one command without showing it, and return the JSON that it prints."""
    words = [sys.executable, "-m", "nola_codec", *map(str, arguments), "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    return result


def file_sha256(path: Path) -> str:
    """The SHA-256 that `sha256sum` prints."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def decoded_sha256(verified: str) -> str:
    """The decoded SHA-256 in what `nola-codec verify` printed."""
    line = next(line for line in verified.splitlines() if line.startswith("decoded SHA-256"))
    return line.split()[-1]


def check(claim: str, holds: bool) -> None:
    """Print a claim that was just tried, and stop if it is false."""
    print(f"  {'yes' if holds else 'NO '}  {claim}")
    if not holds:
        sys.exit(f"demo: not so: {claim}")


def main() -> None:
    """Run the demonstration."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    source = source_adapter()
    file, again, small, decoded = OUT / "adapter.nola", OUT / "again.nola", OUT / "small.nola", OUT / "decoded"

    print("\n1. Encode the adapter as one small file; 9% of the energy of its weights may be lost.")
    command("nola-codec", "encode", source, "-o", file, "--nmse", "0.09")
    print("\n2. Look into the file; nothing is decoded, and torch is not loaded.")
    command("nola-codec", "inspect", file)
    print("\n3. Verify all checksums, and the SHA-256 of everything that the file decodes to.")
    verified = command("nola-codec", "verify", file)
    print("\n4. Measure the loss against the source.")
    command("nola-codec", "compare", source, file)
    print("\n5. Decode the file to an ordinary PEFT adapter.")
    command("nola-codec", "decode", file, "-o", decoded)
    print("\n6. Read the same file with the reference decoder (spec/), which shares no code with the package.")
    reference = command("python", "spec/reference_decoder.py", file)
    print("\n7. Encode to a given size; the default objective is the error that the task feels, not the NMSE.")
    command("nola-codec", "encode", source, "-o", small, "--size", "20KB")

    print("\nThese claims were just tried:")
    report = ask("encode", source, "-o", again, "--nmse", "0.09")
    original, back = (load_file(folder / "adapter_model.safetensors") for folder in (source, decoded))
    check("two encodes of one adapter are the same bytes", file_sha256(file) == file_sha256(again))
    check("the decoded adapter has the tensors and shapes of the source",
          {k: v.shape for k, v in original.items()} == {k: v.shape for k, v in back.items()})  # fmt: skip
    check("package and reference decoder agree on the decoded SHA-256",
          decoded_sha256(verified) in reference)  # fmt: skip
    check("the file of --size 20KB is at most 20,000 bytes", small.stat().st_size <= 20_000)
    check("the NMSE is at most 0.09", report["nmse"] <= 0.09)
    print(
        f"\n{report['source_bytes']:,} bytes of adapter became {report['bytes']:,} bytes: {report['ratio']:.1f} "
        f"times less than fp16, with an NMSE of {report['nmse']:.4f}. The files are in {OUT.relative_to(ROOT)}/."
    )


if __name__ == "__main__":
    main()
