"""The main job once, on a real adapter, explained as it goes: `make demo`.

Encodes the SmolLM-135M medical adapter of the shared data (a synthetic PEFT adapter where there is none), then looks at
the file, verifies it, compares it with its source, decodes it back to PEFT, and has the independent reference decoder
read the same file. Everything made lies in `demo/`. Stops with an error where a step does not hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo"


def synthetic_adapter(folder: Path) -> Path:
    """A PEFT LoRA of 12 layers with the decaying spectra of trained ones, seeded."""
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
    """The adapter to encode."""
    shared = Path(os.environ.get("NOLA_SHARED") or ROOT.parent / "shared").resolve()
    real = shared / "data" / "lora" / "smollm135m_medical"
    if real.is_dir():
        return real
    print(f"No shared data at {shared}: a synthetic adapter stands in (set NOLA_SHARED for a real one).")
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


def answer(*arguments: str | Path) -> dict[str, Any]:
    """The JSON a command prints, quietly."""
    words = [sys.executable, "-m", "nola_codec", *map(str, arguments), "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    return result


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(claim: str, holds: bool) -> None:
    """Print a claim that was just tried, and stop where it is false."""
    print(f"  {'yes' if holds else 'NO '}  {claim}")
    if not holds:
        sys.exit(f"demo: not so: {claim}")


def main() -> None:
    """Run the demonstration."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    source = source_adapter()
    file, again, small, decoded = OUT / "adapter.nola", OUT / "again.nola", OUT / "small.nola", OUT / "decoded"

    print("\n1. Encode: an adapter in, one small file out, 9% of the delta's energy given up.")
    command("nola-codec", "encode", source, "-o", file, "--nmse", "0.09")
    print("\n2. Look into it, without decoding or loading torch.")
    command("nola-codec", "inspect", file)
    print("\n3. Verify: checksums, and the SHA-256 of every decoded factor.")
    command("nola-codec", "verify", file)
    print("\n4. What it lost, measured against the source.")
    command("nola-codec", "compare", source, file)
    print("\n5. Back to an ordinary PEFT adapter.")
    command("nola-codec", "decode", file, "-o", decoded)
    print("\n6. The independent reference decoder (spec/, no code shared) reads the same file.")
    reference = command("python", "spec/reference_decoder.py", file)
    print("\n7. The default objective (what the task feels, not the NMSE), at a given size.")
    command("nola-codec", "encode", source, "-o", small, "--size", "50KB")

    print("\nWhat was just shown")
    report = answer("encode", source, "-o", again, "--nmse", "0.09")
    original, back = (load_file(folder / "adapter_model.safetensors") for folder in (source, decoded))
    check("two encodes of one adapter are the same bytes", digest(file) == digest(again))
    check("the decoded adapter has the tensors and shapes of the source",
          {k: v.shape for k, v in original.items()} == {k: v.shape for k, v in back.items()})  # fmt: skip
    check("package and reference decoder agree on the SHA-256 of the decoded factors",
          answer("verify", file)["decoded_sha256"] in reference)  # fmt: skip
    check("the file asked for at 50 KB is at most that", small.stat().st_size <= 50_000)
    check("the error is what was asked for", report["nmse"] <= 0.09)
    print(
        f"\n{report['source_bytes']:,} bytes of adapter became {report['bytes']:,}: {report['ratio']:.1f} times less "
        f"than its parameters take in fp16, at an NMSE of {report['nmse']:.4f}. All is in {OUT.relative_to(ROOT)}/."
    )


if __name__ == "__main__":
    main()
