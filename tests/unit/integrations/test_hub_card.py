"""The lines of a model card load the file: run as printed, with the base model from the same stand-in of the Hub."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Account, HubServer, connect
from safetensors.numpy import save_file

import nola_codec
from nola_codec.cli import main

with warnings.catch_warnings():
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("peft")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server, connect(server, tmp_path / "home", token="hf_mine"):
        server.accounts["hf_mine"] = Account("me")
        yield server


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore")  # of Transformers and PEFT
def test_the_lines_of_the_card_load_the_file(hub: HubServer, make_case: Callable[..., Any], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    case = make_case(task_type="CAUSAL_LM")
    hub.put("owner/base", {path.name: path.read_bytes() for path in case.base.iterdir()})
    file = tmp_path / "task.nola"
    file.write_bytes(case.encoded)
    card = nola_codec.push_to_hub(file, "me/lora", base_model="owner/base").card
    assert card is not None
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert sum(not line.startswith(("#", "import", "from")) and line != "" for line in lines.splitlines()) <= 5
    names: dict[str, Any] = {}
    exec(lines, names)
    nola_codec.decode(file, tmp_path / "decoded")
    wanted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(case.base), tmp_path / "decoded")
    assert (case.logits(names["model"]) == case.logits(wanted)).all()
    assert not (case.logits(wanted) == case.logits(case.fresh())).all()


def test_a_card_promises_no_pipeline_for_numbered_modules(hub: HubServer, tmp_path: Path) -> None:
    """Diffusers cannot load them, since nothing says which modules the numbers mean."""
    tensors = {"unet:0:down": np.ones((2, 6), np.float32), "unet:0:up": np.ones((5, 2), np.float32)}
    save_file(tensors, tmp_path / "style.safetensors", {"unet:0:rank": "2"})
    nola_codec.encode(tmp_path / "style.safetensors", tmp_path / "style.nola", nmse=0.5)
    card = nola_codec.push_to_hub(tmp_path / "style.nola", "me/style").card
    assert card is not None
    assert "`cloneofsimo`" in card
    assert "nola-codec decode style.nola" in card
    assert "diffusers" not in card
    assert "```python" not in card


def test_the_commands_of_the_card_decode_the_file(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an adapter that no library here loads live: MLX."""
    source = tmp_path / "mlx_lora"
    source.mkdir()
    rng = np.random.default_rng(0)
    name = "model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{name}.lora_a": rng.standard_normal((48, 4)).astype(np.float32),
            f"{name}.lora_b": rng.standard_normal((4, 64)).astype(np.float32),
        },
        source / "adapters.safetensors",
    )
    config = {"fine_tune_type": "lora", "model": "owner/base", "lora_parameters": {"rank": 4, "scale": 2.0}}
    (source / "adapter_config.json").write_text(json.dumps(config))
    hub.put("owner/base", {"config.json": b"{}"})
    nola_codec.encode(source, tmp_path / "a b.nola", nmse=0.1)
    card = nola_codec.push_to_hub(tmp_path / "a b.nola", "me/lora").card
    assert card is not None
    assert "```python" not in card
    assert "base_model: owner/base\n" in card
    (lines,) = re.findall(r"```bash\n(.*?)```", card, re.DOTALL)
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    for line in lines.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "nola-codec"
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert not exit_.value.code
    nola_codec.decode(tmp_path / "a b.nola", tmp_path / "decoded")
    for file in (tmp_path / "decoded").iterdir():
        assert (there / "adapter" / file.name).read_bytes() == file.read_bytes()
