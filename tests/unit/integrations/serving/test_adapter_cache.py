"""From a name to a directory: what is found, refused, decoded once, shared and kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from served_adapters import BASE_NAME, write_adapter, write_model, write_nola

import nola_codec
from nola_codec.disk_cache import DiskCache
from nola_codec.errors import AdapterError, NolaError
from nola_codec.integrations.serving import AdapterCache
from nola_codec.integrations.serving.names import check_name
from nola_codec.integrations.serving.numbers import candidate, number_of
from nola_codec.integrations.serving.sources import open_sources

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `task.nola`, `team/other.nola` and `unnamed.nola`, which names no base model."""
    directory = tmp_path_factory.mktemp("made")
    write_nola(directory / "task.nola")
    write_nola(directory / "team" / "other.nola", seed=1)
    write_nola(directory / "unnamed.nola", seed=2, base_model_name_or_path=None)
    return directory


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    """A copy of `made`, for tests that change it."""
    shutil.copytree(made, tmp_path / "source", ignore=shutil.ignore_patterns("*-source"))
    return tmp_path / "source"


def open_cache(source: Path, root: Path, **options: object) -> AdapterCache:
    return AdapterCache([source], cache=DiskCache(root / "cache"), **options)  # type: ignore[arg-type]


def code_of(cache: AdapterCache, name: str, base: str | None = None) -> str:
    with pytest.raises(NolaError) as caught:
        cache.resolve(name, base)
    return caught.value.code


def test_the_directory_is_that_of_decode(made: Path, tmp_path: Path) -> None:
    nola_codec.decode(made / "task.nola", tmp_path / "decoded", trim=True, dtype="bf16")
    with open_cache(made, tmp_path) as cache:
        served = cache.resolve("task", BASE_NAME)
        assert {file.name for file in served.path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
        for file in served.path.iterdir():
            assert file.read_bytes() == (tmp_path / "decoded" / file.name).read_bytes()
        config = json.loads((served.path / "adapter_config.json").read_text())
    assert (served.name, served.base_model, served.notes) == ("task", BASE_NAME, ())
    assert served.content_sha256 == nola_codec.inspect(made / "task.nola").content_sha256
    assert served.bytes == (made / "task.nola").stat().st_size
    assert served.rank == max(config["r"], *config["rank_pattern"].values()) < 8
    assert config["rank_pattern"]


@pytest.mark.parametrize("name", ["task", "task.nola", "team/other"])
def test_names_that_are_found(name: str, made: Path, tmp_path: Path) -> None:
    with open_cache(made, tmp_path) as cache:
        assert cache.resolve(name, BASE_NAME).path.is_dir()


@pytest.mark.parametrize(
    "name",
    ["", "..", "../task", "team/../task", "/etc/passwd", "team//other", "./task", ".hidden", "task\n", "task?x=1",
     "task#x", "a%2e%2e", "http://example.org/x", "a::b", "user@host", "a\\b", "task/", "x" * 201, "a/b/c/d/e", "C:\\x",
     "a..b", "täsk", "hf://a/b"],
)  # fmt: skip
def test_names_that_are_refused(name: str, made: Path, tmp_path: Path) -> None:
    with open_cache(made / "team", tmp_path) as cache:
        assert code_of(cache, name) == "adapter-name"


def test_a_link_out_of_the_directory_is_refused(made: Path, source: Path, tmp_path: Path) -> None:
    (source / "away.nola").symlink_to(made / "task.nola")
    (source / "near.nola").symlink_to("task.nola")
    (source / "up").symlink_to(made)
    with open_cache(source, tmp_path) as cache:
        assert code_of(cache, "away") == "adapter-name"
        assert code_of(cache, "up/task") == "adapter-name"
        assert cache.resolve("near").path == cache.resolve("task").path


def test_what_is_not_there_or_no_file(made: Path, source: Path, tmp_path: Path) -> None:
    shutil.copy(made / "task-source" / "adapter_model.safetensors", source / "adapter.nola")
    damaged = bytearray((source / "task.nola").read_bytes())
    damaged[-3] ^= 1
    (source / "damaged.nola").write_bytes(damaged)
    with open_cache(source, tmp_path) as cache:
        assert code_of(cache, "absent") == "not-found"
        assert code_of(cache, "adapter") == "magic"
        assert code_of(cache, "damaged") in ("checksum", "content-checksum", "section-checksum")
        assert cache.cache.entries() == []
    for sources in ([], [source / "absent"]):
        with pytest.raises(NolaError) as caught:
            AdapterCache(sources)
        assert caught.value.code == "adapter-source"


@pytest.mark.parametrize(
    ("base", "fits"),
    [
        (BASE_NAME, True),
        (BASE_NAME.upper(), True),
        ("/models/Small-Model", True),
        ("/models/Small-Model/", True),
        ("Small-Model", True),
        ("/hub/models--some-owner--Small-Model/snapshots/0123abc", True),
        ("/hub/models--other-owner--Small-Model/snapshots/0123abc", False),
        ("other-owner/Small-Model", False),
        ("some-owner/Small-Model-Instruct", False),
        ("/models/Small-Model/snapshots", False),
    ],
)
def test_the_base_model_by_name(base: str, fits: bool, made: Path, tmp_path: Path) -> None:
    with open_cache(made, tmp_path) as cache:
        if fits:
            assert cache.resolve("task", base).notes == ()
        else:
            assert code_of(cache, "task", base) == "base-mismatch"
            assert cache.cache.entries() == []  # refused before anything was decoded


def test_further_names_and_adapters_without_a_name(made: Path, tmp_path: Path) -> None:
    with open_cache(made, tmp_path, base_names=[BASE_NAME]) as cache:
        assert cache.resolve("task", "/models/renamed").notes == ()
        assert code_of(cache, "unnamed", BASE_NAME) == "base-mismatch"
    with open_cache(made, tmp_path, base_check="warn") as cache:
        assert cache.resolve("unnamed", BASE_NAME).notes == (
            f"the file names no base model, and the server has {BASE_NAME}",
        )
        (note,) = cache.resolve("task", "other/model").notes
        assert note == f"the file is an adapter of {BASE_NAME}, and the server has other/model"


def test_the_base_model_by_shapes(made: Path, tmp_path: Path) -> None:
    right = write_model(tmp_path / "right" / "Small-Model")
    wrong = write_model(tmp_path / "wrong" / "Small-Model", v_proj=(16, 64))
    named = write_model(tmp_path / "named")
    (named / "config.json").write_text(json.dumps({"model_type": "llama", "_name_or_path": BASE_NAME}))
    with open_cache(made, tmp_path, base_check="warn") as cache:
        assert cache.resolve("task", str(right)).notes == ()
        assert cache.resolve("task", str(named)).notes == ()
        assert (
            cache.resolve("unnamed", str(right)).notes[1] == "its factors fit the weights of the model that is served"
        )
        assert code_of(cache, "task", str(wrong)) == "base-mismatch"
        assert code_of(cache, "task", str(wrong)) == "base-mismatch"


def test_the_limits(made: Path, tmp_path: Path) -> None:
    with open_cache(made, tmp_path, max_rank=1) as cache:
        assert code_of(cache, "task") == "rank-limit"
    with open_cache(made, tmp_path / "other", max_adapter_bytes=1000) as cache:
        assert code_of(cache, "task") == "limit"
        assert cache.cache.entries() == []


def test_a_changed_file_is_another_adapter(source: Path, tmp_path: Path) -> None:
    with open_cache(source, tmp_path) as cache:
        first = cache.resolve("task")
        shutil.copy(source / "team" / "other.nola", source / "new")
        os.replace(source / "new", source / "task.nola")
        second = cache.resolve("task")
        other = cache.resolve("team/other")
        assert first.path != second.path == other.path
        assert first.int_id != second.int_id == other.int_id
        assert first.path.is_dir()  # a server may still have it loaded


def test_what_was_given_out_stays(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache = AdapterCache([made], cache=DiskCache(root, max_bytes=1))
    first, second = cache.resolve("task"), cache.resolve("team/other")
    DiskCache(root, max_bytes=0).evict()
    assert (first.path / "adapter_model.safetensors").is_file()
    assert (second.path / "adapter_model.safetensors").is_file()
    cache.close()
    assert DiskCache(root, max_bytes=0).evict() > 0
    assert DiskCache(root).entries() == []
    again = cache.resolve("task")
    assert (again.path, again.int_id) == (first.path, first.int_id)
    cache.close()


def test_threads_and_processes_decode_once(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from nola_codec.disk_cache import DiskCache\n"
        "from nola_codec.integrations.serving import AdapterCache, adapter_cache\n"
        "decode = adapter_cache.read_for_server\n"
        "def logged(*arguments):\n"
        "    with open(sys.argv[3], 'a') as log: log.write('decoded\\n')\n"
        "    return decode(*arguments)\n"
        "adapter_cache.read_for_server = logged\n"
        "cache = AdapterCache([sys.argv[1]], cache=DiskCache(sys.argv[2]))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "served = cache.resolve('task')\n"
        "print(served.path, served.int_id)\n"
    )
    arguments = [sys.executable, "-c", code, str(made), str(tmp_path / "cache"), str(tmp_path / "log")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen(arguments, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    first, second = (child.communicate()[0] for child in children)
    assert first == second != ""
    assert (tmp_path / "log").read_text() == "decoded\n"
    cache = open_cache(made, tmp_path)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(str(cache.resolve("task").path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {first.split()[0]}
    cache.close()


def test_numbers_that_collide(tmp_path: Path) -> None:
    cache, held = DiskCache(tmp_path), list[tuple[str, str]]()

    def ask(content: str) -> int:
        return number_of(cache, content, lambda kind, key: held.append((kind, key)))

    wanted = candidate("b", 0)
    assert 0 < wanted < 1 << 31
    cache.make("adapter-number", str(wanted), lambda directory: (directory / "content").write_text("a"))
    assert ask("b") == candidate("b", 1) != wanted
    assert ask("b") == candidate("b", 1)
    assert ask("c") == candidate("c", 0)
    assert ("adapter-number", str(wanted)) in held


def uniform_directory(made: Path, tmp_path: Path, name: str) -> Path:
    return open_cache(made, tmp_path, layout="uniform", dtype="f32").resolve(name).path


def products(directory: Path, scaling_of: dict[str, float] | float) -> dict[str, np.ndarray]:
    tensors = load_file(directory / "adapter_model.safetensors")
    found = {}
    for key, lora_A in tensors.items():
        if ".lora_A." in key:
            path = key.removesuffix(".lora_A.weight")
            scaling = scaling_of if isinstance(scaling_of, float) else scaling_of[path]
            found[path] = scaling * tensors[f"{path}.lora_B.weight"].astype(np.float64) @ lora_A.astype(np.float64)
    return found


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 5}},
        {"use_rslora": True, "alpha_pattern": {"v_proj": 3}},
    ],
    ids=str,
)
def test_the_uniform_layout_has_one_rank_and_one_scaling(config: dict[str, object], tmp_path: Path) -> None:
    """What a server computes that reads r and lora_alpha alone is what the file decodes to."""
    write_nola(tmp_path / "source" / "task.nola", **config)
    nola_codec.decode(tmp_path / "source" / "task.nola", tmp_path / "decoded")
    scalings = {module.name: module.scaling for module in nola_codec.read_adapter(tmp_path / "decoded").modules}
    wanted = products(tmp_path / "decoded", scalings)
    directory = uniform_directory(tmp_path / "source", tmp_path, "task")
    stated = json.loads((directory / "adapter_config.json").read_text())
    assert not stated["rank_pattern"]
    assert not stated["alpha_pattern"]
    assert not stated.get("use_rslora")
    ranks = {len(t) for key, t in load_file(directory / "adapter_model.safetensors").items() if ".lora_A." in key}
    assert ranks == {stated["r"]}
    assert stated["r"] < 8
    found = products(directory, stated["lora_alpha"] / stated["r"])
    assert found.keys() == wanted.keys()
    for path, delta in wanted.items():
        np.testing.assert_allclose(found[path], delta, rtol=1e-6, atol=1e-6 * np.abs(delta).max())


@pytest.mark.parametrize(
    ("config", "extra", "found"),
    [
        ({"use_dora": True}, {"self_attn.q_proj.lora_magnitude_vector": 48}, "use_dora in its configuration"),
        ({"modules_to_save": ["norm"]}, {"input_layernorm.weight": 32}, "1 other tensors, such as .*input_layernorm"),
        ({"bias": "lora_only"}, {"self_attn.q_proj.bias": 48}, r"2 other tensors, such as .*q_proj\.bias"),
    ],
    ids=["dora", "saved", "bias"],
)
def test_the_uniform_layout_has_no_place_for_more_than_factors(
    config: dict[str, object], extra: dict[str, int], found: str, tmp_path: Path
) -> None:
    """Such a server would leave it out without a word."""
    folder = write_adapter(tmp_path / "adapter", **config)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, length in extra.items():
        for layer in range(2 if "q_proj" in name else 1):
            tensors[f"base_model.model.model.layers.{layer}.{name}"] = np.ones(length, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (tmp_path / "source").mkdir()
    nola_codec.encode(folder, tmp_path / "source" / "task.nola", nmse=0.05)
    with pytest.raises(AdapterError, match=f"nothing but pairs of factors.*found {found}") as caught:
        uniform_directory(tmp_path / "source", tmp_path, "task")
    assert caught.value.code == "not-expressible"


def test_options_that_cannot_be(made: Path) -> None:
    for options in ({"layout": "other"}, {"dtype": "f64"}, {"base_check": "off"}):
        with pytest.raises(NolaError) as caught:
            AdapterCache([made], **options)  # type: ignore[arg-type]
        assert caught.value.code == "option"
    check_name("my_suffix:aBc1234")
    with pytest.raises(AdapterError):
        check_name("a:")
    for source in ("hf://a/b/c", "hf://a/..", "hf://a?x"):
        with pytest.raises(NolaError) as caught:
            open_sources([source])
        assert caught.value.code == "adapter-source"
