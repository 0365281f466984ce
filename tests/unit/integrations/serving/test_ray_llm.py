"""Ray Serve LLM's own configurations and downloader; and LoRAX, whose rule of the scale is one line."""

from __future__ import annotations

import asyncio
import json
import warnings
from pathlib import Path
from types import ModuleType

import pytest
from served_adapters import BASE_NAME, write_nola

from nola_codec.disk_cache import DiskCache
from nola_codec.errors import NolaError
from nola_codec.integrations.serving import AdapterCache, lorax, sources


@pytest.fixture(scope="module")
def ray_llm() -> ModuleType:
    pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own imports
        ray_llm = pytest.importorskip("nola_codec.integrations.serving.ray_llm", exc_type=ImportError)
    return ray_llm


def test_ray_gets_a_directory(ray_llm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes paths of clouds alone; a directory stands for the bucket here."""
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    write_nola(tmp_path / "bucket" / "my_suffix:aBc1234.nola")
    write_nola(tmp_path / "bucket" / "other.nola", seed=1, base_model_name_or_path="other/model")
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_open_source", lambda _: sources.DirectorySource(tmp_path / "bucket"))
    config = LLMConfig(
        model_loading_config={"model_id": "small", "model_source": BASE_NAME},
        lora_config={"dynamic_lora_loading_path": "s3://bucket/adapters"},
        accelerator_type=None,
    )
    loader = ray_llm.NolaLoraLoader(download_timeout_s=1, max_tries=1)
    found = asyncio.run(loader.load_model_from_config("small:my_suffix:aBc1234", config))
    assert found.model_id == "small:my_suffix:aBc1234"
    assert found.lora_assigned_int_id > 0
    assert (
        json.loads((Path(found.local_path) / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE_NAME
    )
    with pytest.raises(NolaError) as caught:
        asyncio.run(loader.load_model_from_config("small:other", config))
    assert caught.value.code == "base-mismatch"

    async def ask(*_: object) -> None:
        raise FileNotFoundError("the bucket")

    monkeypatch.setattr("ray.llm._internal.serve.utils.lora_serve_utils.get_lora_mirror_config", ask)
    with pytest.raises(FileNotFoundError, match="the bucket"):  # Ray's own way goes on
        asyncio.run(loader.load_model_from_config("small:absent", config))


def test_lorax_gets_a_uniform_directory(tmp_path: Path) -> None:
    write_nola(tmp_path / "source" / "task.nola")
    with AdapterCache([tmp_path / "source"], cache=DiskCache(tmp_path / "cache"), layout="uniform") as cache:
        parameters = lorax.request_parameters(cache, "task", BASE_NAME)
        assert parameters["adapter_source"] == "local"
        assert (Path(parameters["adapter_id"]) / "adapter_config.json").is_file()
        assert Path(parameters["adapter_id"]).is_absolute()
    with (
        AdapterCache([tmp_path / "source"], cache=DiskCache(tmp_path / "cache")) as trimmed,
        pytest.raises(NolaError, match="uniform"),
    ):
        lorax.request_parameters(trimmed, "task")
