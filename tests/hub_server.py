"""A model hub on loopback: the endpoints that huggingface_hub's client uses, over models held in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import yaml
from huggingface_hub import ModelCard

TOKEN = "hf_of_the_test"


@dataclass
class Repo:
    """One model: its commits, each with all its files, and the names of branches and tags."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        whole = {**self.commits.get(self.names.get(branch, ""), {}), **files}
        digest = hashlib.sha1(f"{len(self.commits)}{sorted(whole)}".encode()).hexdigest()
        self.commits[digest], self.names[branch] = whole, digest
        return digest

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.names.get(revision)


class Hub:
    """The server; a context manager. ``failing`` makes every answer one of that status."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.failing = 0
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.partition("?")[0])
        if self.hub.failing:
            return self._send(self.hub.failing, b"down")
        for pattern, handle in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return handle(self, body, **match.groupdict())
        return self._send(404, b"no such endpoint")

    def _send(self, status: int, body: bytes | Any, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _find(self, repo: str, revision: str) -> tuple[Repo, str] | None:
        found = self.hub.repos.get(repo)
        may_read = self._is_known() and repo.startswith("acme/")
        if found is None or (found.private and not may_read):
            self._send(404 if self._is_known() else 401, {"error": "not found"}, X_Error_Code="RepoNotFound")
        elif found.gated and not may_read:
            self._send(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        elif (commit := found.resolve(revision)) is None:
            self._send(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        else:
            return found, commit
        return None

    def _info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        if found := self._find(repo, revision or "main"):
            files = [{"rfilename": name} for name in found[0].commits[found[1]]]
            self._send(200, {"id": repo, "modelId": repo, "sha": found[1], "siblings": files, "tags": []})

    def _tree(self, body: bytes, repo: str, revision: str) -> None:
        if found := self._find(repo, revision):
            files = found[0].commits[found[1]].items()
            entries = [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files]
            self._send(200, entries)

    def _file(self, body: bytes, repo: str, revision: str, file: str) -> None:
        if not (found := self._find(repo, revision)):
            return
        data = found[0].commits[found[1]].get(file)
        if data is None:
            self._send(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=found[1])
        else:
            self._send(200, data, X_Repo_Commit=found[1], ETag=f'"{_oid(data)}"')

    def _create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        if not self._is_known():
            self._send(401, {"error": "Invalid username or password."})
        elif not name.startswith("acme/"):
            self._send(403, {"error": "you may not write there"})
        elif name in self.hub.repos:
            self._send(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        else:
            self.hub.repos[name] = repo = Repo(
                private="private" in (wanted.get("visibility"), wanted.get("private") and "private")
            )
            repo.commit({".gitattributes": b""})
            self._send(200, {"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def _branch(self, body: bytes, repo: str, branch: str) -> None:
        names = self.hub.repos[repo].names
        if branch in names:
            self._send(409, {"error": "exists"})
        else:
            names[branch] = names["main"]
            self._send(200, {})

    def _card(self, body: bytes) -> None:
        try:
            data = ModelCard(json.loads(body)["content"]).data.to_dict()
            good = isinstance(data.get("library_name"), str) and data.get("license") != "no-such-licence"
        except (ValueError, yaml.YAMLError):
            good = False
        self._send(200 if good else 400, {"errors": [] if good else [{"message": "card"}], "warnings": []})

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
        self._send(200, {"files": [{**file, "shouldIgnore": False} for file in files]})

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        commit = self.hub.repos[repo].commit(files, revision)
        self._send(200, {"commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "success": True})


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, Any]] = [
    (r"/api/repos/create", _Handler._create),
    (r"/api/validate-yaml", _Handler._card),
    (rf"/api/models/{_REPO}", _Handler._info),
    (rf"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler._info),
    (rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler._tree),
    (rf"/api/models/{_REPO}/branch/(?P<branch>.+)", _Handler._branch),
    (rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler._preupload),
    (rf"/api/models/{_REPO}/commit/(?P<revision>.+)", _Handler._commit),
    (rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler._file),
]
