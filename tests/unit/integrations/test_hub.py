"""Publish on the Hub and open files from there: the real client against a stand-in of the Hub's HTTP API."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_routes import Refusal
from hub_server import Account, HubServer, connect
from safetensors.numpy import save_file

import nola_codec
from nola_codec import HubError, NolaError

with warnings.catch_warnings():
    pytest.importorskip("huggingface_hub")
from huggingface_hub import constants

from nola_codec.integrations.hub import pull, push_to_hub
from nola_codec.integrations.hub.addresses import RepositoryAddress, parse_address
from nola_codec.integrations.hub.escaping import code, literal

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def encode(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A small file; the base model is `owner/base` unless `changes` says another."""
    rng = np.random.default_rng(seed)
    source = path.parent / f"{path.stem}_lora"
    source.mkdir()
    save_file(
        {
            f"{MODULE}.lora_A.weight": rng.standard_normal((4, 48)).astype(np.float32),
            f"{MODULE}.lora_B.weight": rng.standard_normal((64, 4)).astype(np.float32),
        },
        source / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM",
              "base_model_name_or_path": "owner/base", **changes}  # fmt: skip
    (source / "adapter_config.json").write_text(json.dumps(config))
    nola_codec.encode(source, path, nmse=0.1)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    encode(folder / "task.nola")
    encode(folder / "other.nola", seed=1)
    return folder


@pytest.fixture
def task(made: Path) -> Path:
    return made / "task.nola"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server, connect(server, tmp_path / "home", token="hf_mine"):
        server.accounts["hf_mine"] = Account("me")
        server.accounts["hf_reader"] = Account("me", can_write=False)
        server.put("owner/base", {"config.json": b"{}"})
        yield server


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_file_and_its_card_are_one_commit(hub: HubServer, task: Path) -> None:
    report = push_to_hub(task, "me/lora")
    assert (report.is_new, report.is_private, report.changed) == (True, False, True)
    assert report.url == f"{hub.endpoint}/me/lora"
    assert hub.titles("me/lora") == ["Upload task.nola with nola-codec", "initial commit"]
    files = hub.files("me/lora")
    assert sorted(files) == [".gitattributes", "README.md", "task.nola"]
    assert files["task.nola"] == task.read_bytes()
    card = files["README.md"].decode()
    assert card == report.card
    assert front_matter(card) == {
        "library_name": "nola-codec", "base_model": "owner/base", "base_model_relation": "adapter",
        "pipeline_tag": "text-generation", "tags": ["nola", "nola-codec", "lora", "peft"],
    }  # fmt: skip
    facts = nola_codec.inspect(task)
    for shown in (f"{facts.bytes:,} bytes", f"{facts.measured['nmse']:.4f}", facts.content_sha256,
                  facts.decoded_sha256, report.files[0].sha256, "2, from its configuration",
                  "| held-out loss | not recorded |", 'AutoModelForCausalLM.from_pretrained("owner/base")',
                  "nola-codec pull me/lora:task.nola -o task.nola"):  # fmt: skip
        assert shown in card
    again = push_to_hub(task, "me/lora")
    assert (again.is_new, again.changed, again.commit) == (False, False, report.commit)


def test_a_version_names_the_one_that_it_needs(hub: HubServer, made: Path, tmp_path: Path) -> None:
    old, new = made / "task.nola", tmp_path / "new.nola"
    nola_codec.encode(made / "task_lora", new, reference=old, nmse=0.01)
    alone = push_to_hub(new, "me/alone", dry_run=True)
    decoded = nola_codec.inspect(old).decoded_sha256
    assert f"| needs | an earlier version: `task.nola`, decoded SHA-256 `{decoded}` |" in str(alone.card)
    assert "Pull that version into the folder of this one first" in str(alone.card)
    assert any("new.nola can only be decoded with an earlier version, task.nola" in note for note in alone.notes)
    assert not any("earlier version" in note for note in push_to_hub([old, new], "me/both", dry_run=True).notes)


def test_what_was_pushed_is_what_is_pulled(hub: HubServer, task: Path, tmp_path: Path) -> None:
    report = push_to_hub(task, "me/lora")
    pulled = pull("me/lora", out=tmp_path / "copy.nola")
    assert pulled.path.read_bytes() == task.read_bytes()
    assert (pulled.commit, pulled.file, pulled.from_cache) == (report.commit, "task.nola", False)
    assert pulled.content_sha256 == nola_codec.inspect(task).content_sha256
    with nola_codec.from_hub("me/lora", device="numpy") as opened, nola_codec.load(task, "numpy") as there:
        for found, wanted in zip(opened.factors(MODULE), there.factors(MODULE), strict=True):
            np.testing.assert_array_equal(found, wanted)
    with pytest.raises(nola_codec.OutputExists):
        pull("me/lora", out=tmp_path / "copy.nola")
    pull(f"{'hf://'}me/lora@main/task.nola", out=tmp_path / "copy.nola", overwrite=True)
    assert pull("me/lora", out=tmp_path).path == tmp_path / "task.nola"
    downloads = [r for r in hub.requests if r.path.startswith("/cdn/me/") and r.method == "GET"]
    assert len(downloads) == 1  # all others came from the cache


def test_the_readme_that_is_there_is_kept(hub: HubServer, made: Path) -> None:
    mine = b"---\r\nlicense: mit # mine\r\ntags:\r\n- music\r\n---\r\n# Title\r\n\r\nWords of mine, <b>kept</b>.\r\n"
    hub.put("me/lora", {"README.md": mine})
    push_to_hub(made / "task.nola", "me/lora", license="apache-2.0")
    first = hub.files("me/lora")["README.md"].decode()
    assert first.startswith("---\r\nlicense: mit # mine\r\ntags:\r\n- music\r\nlibrary_name: nola-codec\r\nbase_model:")
    assert mine.decode().split("---\r\n")[2] in first
    assert first.count("\n") == first.count("\r\n")
    push_to_hub(made / "other.nola", "me/lora")
    both = hub.files("me/lora")["README.md"].decode()
    assert both.startswith(first)
    assert both.count("nola-codec: begin") == 2
    push_to_hub(made / "task.nola", "me/lora", base_model="owner/second")
    changed = hub.files("me/lora")["README.md"].decode()
    assert changed.count("nola-codec: begin") == 2
    assert 'from_pretrained("owner/second")' in changed
    assert changed.index("task.nola") < changed.index("other.nola")


@pytest.mark.parametrize(
    "readme",
    [
        b"\xff\xfe",
        b"---\ntags: [\n---\n",
        b"---\n- a\n---\n",
        b'<!-- nola-codec: end "task.nola" -->',
        b"x" * (2 << 20) + b"x",
    ],
)
def test_a_readme_that_cannot_be_extended_is_refused(readme: bytes, hub: HubServer, task: Path) -> None:
    hub.put("me/lora", {"README.md": readme})
    with pytest.raises(HubError) as refused:
        push_to_hub(task, "me/lora")
    assert refused.value.code == "bad-card"
    assert "task.nola" not in hub.files("me/lora")
    push_to_hub(task, "me/lora", card=False)
    assert hub.files("me/lora")["README.md"] == readme


def test_a_readme_that_changes_meanwhile_loses_nothing(
    hub: HubServer, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("me/lora", {"README.md": b"first"})
    taken = hub.take_fault
    commits = []

    def interfere(path: str) -> Refusal | None:
        if "/commit/" in path and not commits:
            commits.append(hub.put("me/lora", {"README.md": b"second, by somebody else"}))
        return taken(path)

    monkeypatch.setattr(hub, "take_fault", interfere)
    push_to_hub(task, "me/lora")
    assert "second, by somebody else" in hub.files("me/lora")["README.md"].decode()
    assert len(hub.titles("me/lora")) == 4


def test_text_of_a_strangers_file_stays_text(hub: HubServer, tmp_path: Path) -> None:
    hostile = "x](http://evil) <script>alert(1)</script>\n---\nlicense: mit\n| `a` |\u202e"
    file = encode(tmp_path / "evil.nola", base_model_name_or_path=hostile, revision=hostile, task_type=hostile)
    report = push_to_hub(file, "me/lora")
    assert report.card is not None
    assert "script" not in report.card
    assert "evil)" not in report.card
    assert front_matter(report.card) == {"library_name": "nola-codec", "tags": ["nola", "nola-codec", "lora", "peft"]}
    assert report.notes == (
        "evil.nola names the base model x](http://evil) <script>alert(1)</script> --- license: mit | `a` |, which is "
        f"not on {hub.endpoint}, so the card has none; --base-model gives its name on the Hub",
    )
    del hub.repositories["owner/base"]  # a name like that of a repository may be a directory on somebody's disk
    card = push_to_hub(encode(tmp_path / "other.nola"), "me/other").card
    assert card is not None
    assert "owner/base" not in card


def test_text_is_escaped() -> None:
    assert code("a`b|c\n<b>\u202e\x1b[31m") == "`a'b\\|c <b>[31m`"
    assert code("x" * 300) == "`" + "x" * 197 + "...`"
    assert code("\n") == "(empty)"
    assert literal('a"b\n\\') == '"a\\"b \\\\"'


@pytest.mark.parametrize(
    ("text", "repo", "revision", "file"),
    [
        ("me/lora", "me/lora", None, None),
        ("me/lora:a/b.nola", "me/lora", None, "a/b.nola"),
        ("hf://me/lora@v2/b.nola", "me/lora", "v2", "b.nola"),
        ("https://huggingface.co/me/lora/", "me/lora", None, None),
        ("https://huggingface.co/me/lora/blob/main/a/b.nola", "me/lora", "main", "a/b.nola"),
        ("https://huggingface.co/me/lora/tree/v2", "me/lora", "v2", None),
    ],
)
def test_addresses(text: str, repo: str, revision: str | None, file: str | None) -> None:
    assert parse_address(text) == RepositoryAddress(repo, revision, file)


@pytest.mark.parametrize(
    "text", ["lora", "hf://datasets/me/lora", "me/lo..ra", "me/lora.git", "https://x.org/me/lora", ""]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(NolaError, match="owner/name"):
        parse_address(text)


def test_no_message_holds_a_token(hub: HubServer, task: Path) -> None:
    hub.fail("/commit/", 400, message="hf_abcdefgh is not good")
    with pytest.raises(HubError, match=r"\(a token\) is not good") as refused:
        push_to_hub(task, "me/lora")
    assert refused.value.code == "refused"


def test_a_file_that_changes_meanwhile_is_not_sent(
    hub: HubServer, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "task.nola"
    file.write_bytes((made / "task.nola").read_bytes())
    taken = hub.take_fault

    def interfere(path: str) -> Refusal | None:
        if path == "/api/repos/create":
            file.write_bytes((made / "other.nola").read_bytes())
        return taken(path)

    monkeypatch.setattr(hub, "take_fault", interfere)
    with pytest.raises(HubError, match="changed while it was pushed"):
        push_to_hub(file, "me/lora")
    assert list(hub.files("me/lora")) == [".gitattributes"]


def test_several_files_branches_and_folders(hub: HubServer, made: Path) -> None:
    files = [made / "task.nola", made / "other.nola"]
    report = push_to_hub(files, "me/loras", revision="v2", path_in_repo="small", private=True, message="Two")
    assert report.is_private is True
    assert hub.repositories["me/loras"].is_private
    assert sorted(hub.repositories["me/loras"].branches) == ["main", "v2"]
    assert {"small/task.nola", "small/other.nola"} <= set(hub.files("me/loras", "v2"))
    assert set(hub.files("me/loras")) == {".gitattributes"}
    with pytest.raises(HubError, match=r"small/other\.nola, small/task\.nola") as refused:
        pull("me/loras", revision="v2")
    assert refused.value.code == "which-file"
    assert pull("me/loras:small/task.nola", revision="v2").bytes == files[0].stat().st_size
    with pytest.raises(HubError, match=r"small/task\.nola") as refused:
        pull("me/loras:missing.nola", revision="v2")
    assert refused.value.code == "no-file"


def test_losses_are_shown_if_they_are_of_this_file(hub: HubServer, task: Path, tmp_path: Path) -> None:
    size = task.stat().st_size
    names = [("", "base", 0, 2.9), ("my_lora", "adapter", 9, 1.35), ("task.nola", "file", size, 1.4)]
    evaluation = {"reference": "my_lora", "rows": 96, "measured": [
        {"name": name, "kind": kind, "bytes": count, "loss": loss} for name, kind, count, loss in names
    ]}  # fmt: skip
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    card = push_to_hub(task, "me/lora", metrics=tmp_path / "eval.json", dry_run=True).card
    assert card is not None
    assert "1.4000 nats a token on 96 rows; the original adapter has 1.3500" in card
    assert "keeps 96.8% of the adapter's gain" in card
    losses = {"file": 1.4, "adapter": 1.35, "base": 2.9, "rows": 96, "unit": "nats a token"}
    encoded = {"bytes": size, "task": losses}
    distances = {"bytes": size, "task": {**losses, "is_distance": True}}
    assert push_to_hub(task, "me/lora", metrics=encoded, dry_run=True).card == card
    other = {"bytes": size + 1, "task": losses}
    refusals: list[dict[str, Any]] = [other, distances, {"bytes": size, "task": None}, {}, {"measured": []}]
    for wrong in refusals:
        with pytest.raises(NolaError) as refused:
            push_to_hub(task, "me/lora", metrics=wrong, dry_run=True)
        assert refused.value.code == "bad-metrics"


def test_a_file_behind_a_url_is_pushed(
    hub: HubServer, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("NOLA_CODEC_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").pipe("/files/remote.nola", task.read_bytes())
    report = push_to_hub("memory://files/remote.nola", "me/lora")
    assert hub.files("me/lora")["remote.nola"] == task.read_bytes()
    assert report.files[0].path == "remote.nola"
    with pytest.raises(NolaError, match="local path"):
        pull("me/lora", out="memory://files/copy.nola")


def test_a_dry_run_sends_nothing(hub: HubServer, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = push_to_hub(task, "me/lora", dry_run=True)
    assert (report.commit, report.is_new, list(hub.repositories)) == (None, True, ["owner/base"])
    assert [file.path for file in report.files] == ["task.nola", "README.md"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    alone = push_to_hub(task, "me/lora", dry_run=True)
    assert alone.card == report.card
    assert "was not asked" in alone.notes[0]


def test_a_server_without_xet_is_no_lost_connection(
    hub: HubServer, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    with pytest.raises(HubError, match=r"status 404.*HF_HUB_DISABLE_XET=1") as refused:
        push_to_hub(task, "me/lora")
    assert refused.value.code == "refused"


def test_what_should_be_private_is_not_published(hub: HubServer, task: Path) -> None:
    hub.put("me/lora", {"a.txt": b"1"})
    with pytest.raises(HubError) as refused:
        push_to_hub(task, "me/lora", private=True)
    assert refused.value.code == "repository-public"
    assert len(hub.titles("me/lora")) == 2


@pytest.mark.parametrize(
    ("token", "repo", "code"),
    [
        (False, "me/lora", "no-token"),
        ("hf_wrong", "me/lora", "bad-token"),
        ("hf_reader", "me/lora", "forbidden"),
        ("hf_mine", "other/new", "forbidden"),
        ("hf_mine", "other/public", "forbidden"),
        ("hf_mine", "me", "option"),
        ("hf_mine", "me/../x", "option"),
        ("hf_mine", "me/lora:task.nola", "option"),
    ],
)
def test_a_push_that_is_refused(token: Any, repo: str, code: str, hub: HubServer, task: Path) -> None:
    hub.put("me/lora", {"a.txt": b"1"})
    hub.put("other/public", {"a.txt": b"1"})
    with pytest.raises(NolaError) as refused:
        push_to_hub(task, repo, token=token)
    assert refused.value.code == code
    assert "hf_" not in str(refused.value)
    assert [commit for name in hub.repositories for commit in hub.titles(name) if "nola" in commit] == []


def test_an_adapter_is_refused_with_the_command_to_run(hub: HubServer, made: Path) -> None:
    for source in (made / "task_lora", made / "task_lora" / "adapter_model.safetensors"):
        with pytest.raises(NolaError, match=f"nola-codec encode {source} -o") as refused:
            push_to_hub(source, "me/lora")
        assert refused.value.code == "not-nola"
    damaged = made / "damaged.nola"
    damaged.write_bytes((made / "task.nola").read_bytes()[:-1])
    with pytest.raises(nola_codec.FormatError):
        push_to_hub(damaged, "me/lora")
    assert hub.requests == []


@pytest.mark.parametrize("path", ["../a.nola", "/a/../b.nola", "a\\b.nola", 'a".nola', "-x.nola", "a\n.nola"])
def test_paths_stay_in_the_repository(path: str, task: Path, hub: HubServer) -> None:
    with pytest.raises(NolaError) as refused:
        push_to_hub(task, "me/lora", path_in_repo=path, dry_run=True)
    assert refused.value.code == "option"
    with pytest.raises(NolaError) as refused:
        pull("me/lora", path)
    assert refused.value.code == "option"
    assert hub.requests == []


def test_a_pull_that_is_refused(hub: HubServer, task: Path) -> None:
    hub.put("other/gated", {"task.nola": task.read_bytes()})
    hub.put("other/secret", {"task.nola": task.read_bytes()})
    hub.put("other/peft", {"adapter_model.safetensors": b"1"})
    hub.put("other/damaged", {"task.nola": task.read_bytes()[:-1]})
    hub.repositories["other/gated"].is_gated = hub.repositories["other/secret"].is_private = True
    for repo, error_code, said in (
        ("other/gated", "gated", "other/gated"),
        ("other/secret", "not-found", "that you may see"),
        ("other/nothing", "not-found", "no such repository"),
        ("other/peft", "no-file", "adapter_model.safetensors is an adapter"),
        ("other/damaged", "truncated", "delete .* and pull again"),
        ("other/peft@v9", "no-revision", "no such branch"),
    ):
        with pytest.raises(NolaError, match=said) as refused:
            pull(repo)
        assert refused.value.code == error_code, repo
    with pytest.raises(HubError, match="hf auth login"):
        pull("other/secret", token=False)


def test_a_damaged_cache_is_found(hub: HubServer, made: Path) -> None:
    hub.put("me/lora", {"task.nola": (made / "task.nola").read_bytes()})
    cached = pull("me/lora").path.resolve()
    cached.write_bytes((made / "other.nola").read_bytes())  # a good file, but another one
    with pytest.raises(NolaError, match=f"delete {cached}") as refused:
        pull("me/lora")
    assert refused.value.code == "content-checksum"
    cached.unlink()
    assert pull("me/lora").path.read_bytes() == (made / "task.nola").read_bytes()


def test_without_a_network_the_cache_serves(hub: HubServer, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("me/lora", {"task.nola": task.read_bytes()})
    online = pull("me/lora")
    asked = len(hub.requests)
    assert pull("me/lora", local_files_only=True).path == online.path
    monkeypatch.setenv("NOLA_CODEC_OFFLINE", "1")
    assert pull("me/lora").from_cache
    with pytest.raises(HubError) as refused:
        pull("me/never")
    assert refused.value.code == "offline"
    with pytest.raises(HubError) as refused:
        push_to_hub(task, "me/lora")
    assert refused.value.code == "offline"
    assert len(hub.requests) == asked
    monkeypatch.delenv("NOLA_CODEC_OFFLINE")
    hub.fail("/api/models/", 503, times=2)
    assert pull("me/lora").from_cache
    with pytest.raises(HubError) as refused:
        pull("me/never")
    assert refused.value.code == "busy"
    nowhere = "http://127.0.0.1:9"
    assert pull("me/lora", endpoint=nowhere).from_cache
    with pytest.raises(HubError, match="cannot be reached") as refused:
        pull("me/never", endpoint=nowhere)
    assert refused.value.code == "no-connection"
