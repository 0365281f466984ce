"""vLLM's own registry, request and reader of configurations get what they expect from the plugin."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_adapters import BASE_NAME, importable_vllm, write_nola

import nola_codec
from nola_codec.disk_cache import DiskCache
from nola_codec.errors import NolaError
from nola_codec.integrations.serving import AdapterCache, adapter_cache, vllm

pytest.importorskip("msgspec")
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module", autouse=True)
def _vllm() -> Iterator[None]:
    with importable_vllm():
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    write_nola(directory / "task.nola", alpha_pattern={"layers.1.self_attn.q_proj": 5})
    write_nola(directory / "rs.nola", seed=1, use_rslora=True)
    return directory


def make_resolver(source: Path, root: Path, **options: Any) -> Any:
    from nola_codec.integrations.serving.vllm_resolver import NolaResolver

    return NolaResolver(AdapterCache([source], cache=DiskCache(root), **options))


def test_vllm_reads_the_ranks_and_scalings_that_the_file_has(source: Path, tmp_path: Path) -> None:
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.request import LoRARequest

    resolver = make_resolver(source, tmp_path, layout=vllm.layout_of_vllm())
    for name in ("task", "rs"):
        request = asyncio.run(resolver.resolve_lora(BASE_NAME, name))
        assert isinstance(request, LoRARequest)
        assert (request.lora_name, request.name, request.path) == (name, name, request.lora_path)
        assert request.lora_int_id == resolver.cache.resolve(name).int_id > 0
        helper = PEFTHelper.from_local_dir(request.lora_path, None)
        helper.validate_legal(LoRAConfig(max_lora_rank=8))
        modules = nola_codec.read_adapter(request.lora_path).modules
        scalings = {module.name: module.scaling for module in nola_codec.read_adapter(source / f"{name}.nola").modules}
        assert len({module.rank for module in modules}) > 1
        for module in modules:
            path = module.name.removeprefix("base_model.model.")
            assert helper.get_rank_and_scaling(path) == (module.rank, pytest.approx(scalings[module.name], rel=1e-12))


def test_the_plugin_is_registered_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.resolver import LoRAResolverRegistry

    (value,) = re.findall(r'vllm.general_plugins"\]\nnola_codec = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert importlib.metadata.EntryPoint("nola_codec", value, "vllm.general_plugins").load() is vllm.register
    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
    vllm.register()
    assert not LoRAResolverRegistry.get_supported_resolvers()
    monkeypatch.setenv("NOLA_CODEC_VLLM_SOURCES", f"{source}, {tmp_path}")
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path / "cache"))
    vllm.register()
    first = LoRAResolverRegistry.get_resolver("nola-codec")
    vllm.register()
    assert LoRAResolverRegistry.get_resolver("nola-codec") is first
    request = asyncio.run(first.resolve_lora(BASE_NAME, "task"))
    assert request is not None
    assert Path(request.lora_path).is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("MAX_LORA_RANK", "many", "option"),
        ("MAX_LORA_RANK", "0", "option"),
        ("BASE_CHECK", "off", "option"),
        ("CACHE_SIZE", "large", "option"),
        ("SOURCES", "/no/such/directory", "adapter-source"),
        ("SOURCE", "/srv", "option"),
    ],
)
def test_a_wrong_setting_is_an_error(setting: str, value: str, code: str, source: Path) -> None:
    environment = {"NOLA_CODEC_VLLM_SOURCES": str(source), f"NOLA_CODEC_VLLM_{setting}": value}
    with pytest.raises(NolaError) as caught:
        vllm.cache_of_environment(environment, "trimmed")
    assert caught.value.code == code


def test_the_settings_count(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path))
    settings = {"SOURCES": str(source), "MAX_LORA_RANK": "1", "BASE_NAMES": "x/y, z", "BASE_CHECK": "warn",
                "CACHE_SIZE": "2MB", "REFERENCES": f"{tmp_path}, hf://x/y"}  # fmt: skip
    cache = vllm.cache_of_environment({f"NOLA_CODEC_VLLM_{name}": value for name, value in settings.items()}, "trimmed")
    assert cache.cache.max_bytes == 2_000_000
    assert cache._references == [str(tmp_path), "hf://x/y"]
    with pytest.raises(NolaError) as caught:
        cache.resolve("task", "x/y")
    assert caught.value.code == "rank-limit"


def test_refusals_are_none_and_a_line_in_the_log(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = make_resolver(source, tmp_path, max_rank=1)
    with caplog.at_level(logging.DEBUG, "vllm.plugins.nola_codec"):
        for base, name in (
            (BASE_NAME, "absent"),
            (BASE_NAME, "../task\n"),
            ("other/model", "task"),
            (BASE_NAME, "task"),
        ):
            assert asyncio.run(resolver.resolve_lora(base, name)) is None
    levels = [(record.levelname, record.getMessage().rpartition(" ")[2]) for record in caplog.records]
    codes = {"DEBUG": ["[not-found]", "[adapter-name]"], "WARNING": ["[base-mismatch]", "[rank-limit]"]}
    assert levels == [(level, code) for level, listed in codes.items() for code in listed]
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_many_requests_decode_once_and_do_not_stop_the_server(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver, count = make_resolver(source, tmp_path), list[float]()
    decode, started = adapter_cache.read_for_server, threading.Event()

    def slow(*arguments: Any) -> Any:
        count.append(time.monotonic())
        started.set()
        time.sleep(0.3)
        return decode(*arguments)

    monkeypatch.setattr(adapter_cache, "read_for_server", slow)

    async def serve() -> tuple[list[Any], int]:
        requests = [asyncio.ensure_future(resolver.resolve_lora(BASE_NAME, "task")) for _ in range(16)]
        turns = 0
        while not all(request.done() for request in requests):
            await asyncio.sleep(0.01)
            turns += started.is_set()
        return [await request for request in requests], turns

    answers, turns = asyncio.run(serve())
    assert len(count) == 1
    assert turns > 5  # the event loop went on while the adapter was decoded
    assert len({(answer.lora_path, answer.lora_int_id) for answer in answers}) == 1
