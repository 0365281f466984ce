"""URLs and paths, secrets, and the addresses of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from nola_codec.errors import RemoteError
from nola_codec.remote import open_url
from nola_codec.remote.addresses import (
    HubAddress,
    file_url_path,
    hide_secrets,
    hub_address,
    is_chain,
    is_url,
    last_name,
    shown_url,
)


@pytest.mark.parametrize(
    "url", ["https://h/a.nola", "S3://b/k", "memory://x", "hf://a/b", "zip://a::https://h/b.zip", "file:///tmp/a",
            "simplecache::s3://b/k"]
)  # fmt: skip
def test_a_url_is_one(url: str) -> None:
    assert is_url(url)


@pytest.mark.parametrize(
    "path", ["C:\\x\\a.nola", "C://x", "C:/x", "a:0.7", "/tmp/a.nola", "a.nola", "my_lora", "", "a::b", "-", "://x",
             Path("/tmp"), b"https://h/a", None, 3]
)  # fmt: skip
def test_a_path_is_no_url(path: object) -> None:
    assert not is_url(path)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@h:80/a.nola?sig=abc#frag", "https://h:80/a.nola?..."),
        ("https://token@h/a", "https://h/a"),
        ("https://me:p/w@h/a", "https://h/a"),
        ("https://h:8000/a@b/c", "https://h:8000/a@b/c"),
        ("https://[::1]/a@b", "https://[::1]/a@b"),
        ("s3://key:secret@bucket/k", "s3://bucket/k"),
        ("zip://a.nola::https://me:pw@h/b.zip?x=1", "zip://a.nola::https://h/b.zip?..."),
        ("hf://a/b@main/c", "hf://a/b@main/c"),
        ("abfs://container@account.dfs.core.windows.net/k", "abfs://container@account.dfs.core.windows.net/k"),
    ],
)
def test_secrets_are_not_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_secrets_are_cut_out_of_the_errors_of_others() -> None:
    url = "https://me:pw12@h/a?sig=s3cret"
    text = hide_secrets(f"cannot GET {url}: user me:pw12 at /a?sig=s3cret", url)
    assert "pw12" not in text
    assert "s3cret" not in text
    assert "https://h/a" in text


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("hf://me/lora", HubAddress("me/lora")),
        ("hf://me/lora/sub/a.nola", HubAddress("me/lora", path="sub/a.nola")),
        ("hf://me/lora@v1/a.nola", HubAddress("me/lora", revision="v1", path="a.nola")),
        ("hf://me/lora@refs/pr/3/a.nola", HubAddress("me/lora", revision="refs/pr/3", path="a.nola")),
        ("hf://me/lora@a%2Fb/c", HubAddress("me/lora", revision="a/b", path="c")),
        ("hf://datasets/me/rows/x.jsonl", HubAddress("me/rows", "dataset", path="x.jsonl")),
        ("https://huggingface.co/me/lora", HubAddress("me/lora")),
        ("https://huggingface.co/me/lora/tree/main", HubAddress("me/lora", revision="main")),
        ("https://huggingface.co/me/lora/blob/main/a b.nola", HubAddress("me/lora", revision="main", path="a b.nola")),
        ("https://huggingface.co/datasets/me/rows", HubAddress("me/rows", "dataset")),
        ("https://huggingface.co/me/lora/resolve/main/a.nola", None),
        ("https://huggingface.co/docs/peft", None),
        ("https://example.org/me/lora", None),
    ],
)
def test_addresses_of_the_hub(url: str, address: HubAddress | None) -> None:
    assert hub_address(url) == address


def test_the_hub_may_lie_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org/")
    assert hub_address("https://hub.example.org/me/lora/tree/v2") == HubAddress("me/lora", revision="v2")


@pytest.mark.parametrize(
    "url", ["hf://me", "https://", "https://h:port/x", "https://[::1/x", "https://h/a\nb", "s3://" + "x" * 9000]
)
def test_a_url_that_means_nothing_is_refused(url: str) -> None:
    with pytest.raises(RemoteError) as caught:
        open_url(url)
    assert caught.value.code == "bad-url"


def test_an_address_of_ipv6_is_no_chain() -> None:
    url = "https://me:pw@[::1]:8080/a.nola?x=::https://b/c"
    assert not is_chain(url)
    assert shown_url(url) == "https://[::1]:8080/a.nola?..."


def test_urls_of_local_files_are_paths() -> None:
    assert file_url_path("file:///tmp/a%20b.nola") == Path("/tmp/a b.nola")
    assert file_url_path("https://h/a") is None
    with pytest.raises(RemoteError, match="three slashes"):
        file_url_path("file://tmp/a")


@pytest.mark.parametrize(
    ("url", "name"),
    [("https://h/x/my.nola?sig=1", "my.nola"), ("s3://b/my_lora/", "my_lora"), ("https://h/", "download"),
     ("https://h/..", "download"), ("https://h/a%2F..%2Fb", "a_.._b"), ("zip://in/a.nola::https://h/b.zip", "a.nola")],
)  # fmt: skip
def test_names_of_copies_are_safe(url: str, name: str) -> None:
    assert last_name(url) == name
