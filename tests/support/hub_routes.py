"""The answers of the stand-in for the Hub: one function a route, which sends an answer or raises a `Refusal`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from hub_storage import Commit, Repository, StoredFile, wants_lfs

if TYPE_CHECKING:
    from hub_server import Handler


class Refusal(Exception):
    """An answer that is an error, with the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


def history(repository: Repository, oid: str | None) -> Iterator[Commit]:
    while oid is not None:
        commit = repository.commits[oid]
        yield commit
        oid = commit.parent


def _whoami(it: Handler) -> None:
    if it.account is None:
        raise Refusal(401, "Invalid username or password.")
    role = "write" if it.account.can_write else "read"
    token = {"accessToken": {"displayName": "test", "role": role}}
    it.send_json({"type": "user", "name": it.account.user, "fullname": it.account.user, "orgs": [], "auth": token})


def _create_repository(it: Handler) -> None:
    wanted = it.json()
    if it.account is None:
        raise Refusal(401, "Invalid username or password.")
    owner = wanted.get("organization") or it.account.user
    name = f"{owner}/{wanted['name']}"
    url = {"url": f"{it.hub.endpoint}/{name}", "name": name, "id": hashlib.sha1(name.encode()).hexdigest()[:24]}
    if owner != it.account.user or not it.account.can_write:
        raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
    if name in it.hub.repositories:
        it.send_json({"error": "You already created this model repo", **url}, 409)
        return
    it.hub.storage.create(name, is_private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
    it.send_json(url)


def _validate_yaml(it: Handler) -> None:
    import yaml

    match = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", it.json()["content"], re.DOTALL)
    errors: list[str] = []
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        data, errors = {}, [f"YAML: {error}"]
    if not isinstance(data, dict):
        data, errors = {}, ["the metadata is no mapping"]
    for name in [data["base_model"]] if isinstance(data.get("base_model"), str) else data.get("base_model") or []:
        if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name):
            errors.append(f'"base_model" with value "{name}" is not valid. Use a model id from https://hf.co/models.')
    for key in ("tags", "datasets", "metrics"):
        if key in data and not (isinstance(data[key], list) and all(isinstance(tag, str) for tag in data[key])):
            errors.append(f'"{key}" must be an array of strings')
    missing = [] if match else [{"message": "empty or missing yaml metadata in repo card"}]
    it.send_json({"errors": [{"message": e} for e in errors], "warnings": missing}, 400 if errors else 200)


def _model_info(it: Handler, name: str, revision: str) -> None:
    repository = it.repository(name)
    commit = it.commit_of(repository, revision or "main")
    it.send_json({
        "_id": "0", "id": name, "modelId": name, "author": repository.owner, "sha": commit.oid,
        "private": repository.is_private, "gated": "manual" if repository.is_gated else False, "disabled": False,
        "downloads": 0, "likes": 0, "tags": [], "lastModified": "2026-11-29T00:00:00.000Z",
        "createdAt": "2026-11-29T00:00:00.000Z",
        "siblings": [file.sibling(path, with_blobs="blobs" in it.query) for path, file in sorted(commit.files.items())],
    })  # fmt: skip


def _tree(it: Handler, name: str, revision: str, folder: str) -> None:
    repository = it.repository(name)
    commit = it.commit_of(repository, revision)
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    recursive = it.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    entries: dict[str, dict[str, object]] = {}
    for path, file in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        above = path[len(prefix) :].split("/")[:-1]
        for depth in range(1, len(above) + 1):
            parent = prefix + "/".join(above[:depth])
            if recursive or depth == 1:
                entries.setdefault(parent, {"type": "directory", "path": parent, "size": 0, "oid": "0" * 40})
        if recursive or not above:
            entries[path] = file.entry(path)
    if prefix and not entries:
        raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound", {"X-Repo-Commit": commit.oid})
    start = int(it.query.get("cursor", ["0"])[0])
    page = list(entries.values())[start : start + it.hub.page]
    headers = {}
    if start + len(page) < len(entries):
        address = f"{it.hub.endpoint}{urlsplit(it.path).path}?recursive={recursive}&cursor={start + len(page)}"
        headers["Link"] = f'<{address}>; rel="next"'
    it.send_json(page, headers=headers)


def _paths_info(it: Handler, name: str, revision: str) -> None:
    commit = it.commit_of(it.repository(name), revision)
    if it.headers.get("Content-Type", "").startswith("application/json"):
        wanted = it.json()["paths"]
    else:
        wanted = parse_qs(it.body.decode()).get("paths", [])
    found = []
    for path in wanted:
        if path in commit.files:
            found.append(commit.files[path].entry(path))
        elif any(name.startswith(path.rstrip("/") + "/") for name in commit.files):
            found.append({"type": "directory", "path": path.rstrip("/"), "size": 0, "oid": "0" * 40})
    it.send_json(found)


def _refs(it: Handler, name: str) -> None:
    branches = it.repository(name).branches
    listed = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": oid} for b, oid in branches.items()]
    it.send_json({"branches": listed, "converts": [], "tags": [], "pullRequests": []})


def _commits(it: Handler, name: str, revision: str) -> None:
    repository = it.repository(name)
    it.send_json([
        {"id": commit.oid, "title": commit.title, "message": "", "authors": [{"user": repository.owner}],
         "date": "2026-11-29T00:00:00.000Z"}
        for commit in history(repository, it.commit_of(repository, revision).oid)
    ])  # fmt: skip


def _create_branch(it: Handler, name: str, branch: str) -> None:
    repository = it.repository(name, writing=True)
    if branch in repository.branches:
        raise Refusal(409, f"Reference already exists: {branch}")
    start = it.json().get("startingPoint", "main") if it.body else "main"
    repository.branches[branch] = it.commit_of(repository, start).oid
    it.send_json({})


def _preupload(it: Handler, name: str, revision: str) -> None:
    commit = it.commit_of(it.repository(name, writing=True), revision)
    answers = []
    for file in it.json()["files"]:
        mode = "lfs" if wants_lfs(file["path"], file["size"], base64.b64decode(file["sample"])) else "regular"
        stored = commit.files.get(file["path"])
        oid = None if stored is None else stored.etag
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    it.send_json({"files": answers})


def _lfs_batch(it: Handler, name: str) -> None:
    it.repository(name, writing=True)
    wanted = it.json()
    assert wanted["operation"] == "upload"
    assert wanted["hash_algo"] == "sha256"
    answers = []
    for item in wanted["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in it.hub.storage.objects:
            upload = {"href": f"{it.hub.content_host}/cdn/upload/{item['oid']}/{item['size']}?signature=1"}
            verify = {"href": f"{it.hub.endpoint}/{name}.git/info/lfs/objects/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        answers.append(answer)
    it.send_json({"transfer": "basic", "objects": answers})


def _lfs_upload(it: Handler, oid: str, size: str) -> None:
    _refuse_credentials(it)
    if hashlib.sha256(it.body).hexdigest() != oid or len(it.body) != int(size):
        raise Refusal(400, "XAmzContentSHA256Mismatch")
    it.hub.storage.objects[oid] = it.body
    it.send(200, headers={"ETag": f'"{hashlib.md5(it.body).hexdigest()}"'})


def _lfs_verify(it: Handler, name: str) -> None:
    it.repository(name, writing=True)
    wanted = it.json()
    if len(it.hub.storage.objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise Refusal(404, "the object was not uploaded")
    it.send_json({})


def _commit(it: Handler, name: str, branch: str) -> None:
    repository = it.repository(name, writing=True)
    head = it.commit_of(repository, branch)
    files, title = dict(head.files), ""
    for line in it.body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            title = value["summary"]
            if value.get("parentCommit") not in (None, head.oid):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        elif entry["key"] == "file":
            files[value["path"]] = StoredFile(base64.b64decode(value["content"]), False)
        elif entry["key"] == "lfsFile":
            if value["oid"] not in it.hub.storage.objects:
                raise Refusal(400, f"the LFS object {value['oid']} was not uploaded")
            files[value["path"]] = StoredFile(it.hub.storage.objects[value["oid"]], True)
        elif entry["key"] == "deletedFile":
            files.pop(value["path"])
    made = repository.commit(branch, title, files)
    it.send_json({"success": True, "commitOid": made.oid, "commitUrl": f"{it.hub.endpoint}/{name}/commit/{made.oid}"})


def _resolve(it: Handler, name: str, revision: str, path: str) -> None:
    repository = it.repository(name)
    if repository.is_gated and (it.account is None or it.account.user != repository.owner):
        raise Refusal(401 if it.account is None else 403, f"Access to model {name} is restricted.", "GatedRepo")
    commit = it.commit_of(repository, revision)
    file = commit.files.get(path)
    if file is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "ETag": f'"{file.etag}"'}
    if not file.is_lfs:
        _send_content(it, file.content, headers)
        return
    it.hub.storage.objects[file.sha256] = file.content
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
    location = f"{it.hub.content_host}/cdn/{quote(name)}/{file.sha256}?signature=1"
    it.send(302, b"Found", {**headers, "Location": location})


def _content(it: Handler, oid: str) -> None:
    _refuse_credentials(it)
    content = it.hub.storage.objects.get(oid)
    if content is None:
        raise Refusal(403, "AccessDenied")
    _send_content(it, content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Accept-Ranges": "bytes"})


def _refuse_credentials(it: Handler) -> None:
    """Signed addresses of a content network take no other credentials: a client that sends them leaks a token."""
    if "Authorization" in it.headers:
        raise Refusal(400, "InvalidArgument: Only one auth mechanism allowed")


def _send_content(it: Handler, content: bytes, headers: dict[str, str]) -> None:
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", it.headers.get("Range", ""))
    condition = it.headers.get("If-Range")
    if not asked or asked.groups() == ("", "") or (condition and condition != headers["ETag"]):
        it.send(200, content, headers)
        return
    size = len(content)
    if asked[1]:
        start, stop = int(asked[1]), min(int(asked[2] or size), size - 1) + 1
    else:
        start, stop = max(0, size - int(asked[2])), size
    if start >= size or start >= stop:
        raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    it.send(206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = [
    (method, re.compile(pattern), function)
    for method, pattern, function in (
        ("GET", "/api/whoami-v2", _whoami),
        ("POST", "/api/repos/create", _create_repository),
        ("POST", "/api/validate-yaml", _validate_yaml),
        ("GET", f"/api/models/{_NAME}(?:/revision/([^/]+))?", _model_info),
        ("GET", f"/api/models/{_NAME}/tree/([^/]+)(/.+)?", _tree),
        ("POST", f"/api/models/{_NAME}/paths-info/([^/]+)", _paths_info),
        ("GET", f"/api/models/{_NAME}/refs", _refs),
        ("GET", f"/api/models/{_NAME}/commits/([^/]+)", _commits),
        ("POST", f"/api/models/{_NAME}/branch/([^/]+)", _create_branch),
        ("POST", f"/api/models/{_NAME}/preupload/([^/]+)", _preupload),
        ("POST", f"/api/models/{_NAME}/commit/([^/]+)", _commit),
        ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _lfs_batch),
        ("POST", rf"/{_NAME}\.git/info/lfs/objects/verify", _lfs_verify),
        ("PUT", r"/cdn/upload/([0-9a-f]{64})/(\d+)", _lfs_upload),
        ("GET HEAD", r"/cdn/[\w.-]+/[\w.-]+/([0-9a-f]{64})", _content),
        ("GET HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", _resolve),
    )
]
