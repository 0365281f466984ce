"""SGLang's own reader gets the tensors that the file decodes to, and computes the right deltas from what it reads."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from served_adapters import VENDORED, write_nola

import nola_codec
from nola_codec.errors import NolaError
from nola_codec.integrations.serving import sglang

torch = pytest.importorskip("torch")
pytest.importorskip("msgspec")


@pytest.fixture(scope="module")
def server() -> ModuleType:
    """What SGLang does with a request."""
    sys.path.insert(0, str(VENDORED))
    try:
        import sglang_excerpts
    finally:
        sys.path.remove(str(VENDORED))
    return sglang_excerpts  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "task.nola"
    return write_nola(path, use_rslora=True, alpha_pattern={"layers.1.self_attn.q_proj": 5})


def test_the_server_reads_the_deltas_of_the_file(server: ModuleType, file: Path) -> None:
    body = json.loads(json.dumps(sglang.load_request(file, "task", tp_size=2, pinned=True)))
    payloads = server.normalize_serialized_named_tensor_payloads(body["serialized_named_tensors"])
    request = server.LoadLoRAAdapterFromTensorsReqInput(**{**body, "serialized_named_tensors": payloads})
    assert (request.lora_name, request.pinned, len(payloads)) == ("task", True, 2)
    tensors = server.MultiprocessingSerializer.deserialize(payloads[0])
    config = server.LoRAConfig.from_dict(request.config_dict)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    found = {
        name: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest() for name, tensor in tensors.items()
    }
    assert found == request.expected_checksums
    scaling = config.lora_alpha / config.r  # as its class LoRAAdapter computes it, for all modules
    with nola_codec.load(file) as task:
        for name in task.names():
            lora_A, lora_B = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            assert (lora_A.shape[0], lora_B.shape[1]) == (config.r, config.r)
            wanted = task.delta_weight(name).double()
            error = (scaling * lora_B.double() @ lora_A.double() - wanted).norm() / wanted.norm()
            assert error < 2**-8  # the rounding to bfloat16


def test_the_pickle_has_no_handles_of_this_process(file: Path) -> None:
    """It is read in another process after this one let go of the tensors; shared memory would be gone."""
    body = sglang.load_request(file, "task")
    data = base64.b64decode(body["serialized_named_tensors"][0])
    assert b"rebuild_storage_fd" not in data
    assert b"rebuild_storage_filename" not in data
    with pytest.raises(
        RuntimeError, match="Blocked"
    ):  # the server's reader is strict, so the test above means something
        sys.modules["sglang_excerpts"].MultiprocessingSerializer.deserialize(pickle.dumps(np.float32(1)))


class Engine:
    """The one method of `sglang.Engine` that is called."""

    def __init__(self, max_rank: int) -> None:
        self.max_rank = max_rank

    def load_lora_adapter_from_tensors(
        self, lora_name: str, tensors: dict[str, Any], config_dict: dict[str, Any], load_format: str | None = None
    ) -> SimpleNamespace:
        self.loaded = (lora_name, tensors, config_dict)
        fits = config_dict["r"] <= self.max_rank
        return SimpleNamespace(success=fits, error_message=None if fits else "incompatible rank")


def test_an_engine_in_this_process(file: Path) -> None:
    engine = Engine(4)
    sglang.load_into(engine, file, "task")
    name, tensors, config = engine.loaded
    assert (name, config["r"], len(tensors)) == ("task", 3, 8)
    with pytest.raises(NolaError, match="task: SGLang refused the adapter: incompatible rank"):
        sglang.load_into(Engine(2), file, "task")
