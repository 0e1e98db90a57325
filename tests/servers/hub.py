"""A small stand-in for the hub's HTTP API, over loopback: what `huggingface_hub` asks of it, and faults on demand.

Search, one model's information, files with ranges, ETags and a redirect to a "CDN" for large ones, gated and private
models, a connection that breaks or stands still in the middle of a file.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_an_account_that_accepted"
LARGE_BYTES = 64_000  # from here on a file is one of the large store, as with git-lfs


@dataclass
class Repository:
    files: dict[str, bytes]
    commit: str = "c" * 40
    licence: str = "apache-2.0"
    gated: bool = False
    private: bool = False
    task: str = "text-generation"

    @property
    def config(self) -> dict[str, Any]:
        found = json.loads(self.files.get("config.json", b"{}"))
        return {key: found[key] for key in ("model_type", "architectures") if key in found}

    @property
    def parameters(self) -> int:
        return sum(len(content) for name, content in self.files.items() if name.endswith(".safetensors")) // 2


@dataclass
class FakeHub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    break_after: int | None = None  # bytes of a large file, after which the connection ends; counts once
    hold_after: int | None = None  # bytes after which a large file stands still until `released` is set
    released: threading.Event = field(default_factory=threading.Event)
    is_holding: threading.Event = field(default_factory=threading.Event)
    damaged: set[str] = field(default_factory=set)  # files whose bytes are not those of the commit
    status: int | None = None  # of every answer
    url: str = ""

    def add(
        self, hub_id: str, folder: Path | None = None, *, extra: dict[str, bytes] | None = None, **fields: Any
    ) -> None:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} if folder else {}
        self.repositories[hub_id] = Repository(files=files | (extra or {}), **fields)

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            fake = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a killed client is no news
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        self.fake.requests.append((self.command, path, self.headers.get("Range")))
        if self.fake.status is not None:
            self._json({"error": "broken"}, self.fake.status)
        elif path == "/api/models":
            self._search(query)
        elif path.startswith("/api/models/"):
            hub_id, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self._information(hub_id, revision or "main")
        elif path.startswith("/cdn/"):
            _, _, owner, name, file = path.split("/", 4)
            self._content(self.fake.repositories[f"{owner}/{name}"].files[file], file)
        elif "/resolve/" in path:
            hub_id, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._resolve(hub_id, revision, file)
        else:
            self._json({"error": "no such path"}, 404)

    def _search(self, query: dict[str, str]) -> None:
        found = []
        for hub_id, each in self.fake.repositories.items():
            wanted = query.get("search", "").lower() in hub_id.lower()
            wanted &= query.get("author") in (None, hub_id.split("/")[0])
            wanted &= query.get("pipeline_tag") in (None, each.task)
            wanted &= query.get("filter") in (None, f"license:{each.licence}")
            for bound in query.get("num_parameters", "").split(","):
                kind, _, value = bound.partition(":")
                wanted &= not value or (
                    each.parameters >= int(value) if kind == "min" else each.parameters <= int(value)
                )
            if wanted and not each.private:
                found.append(self._info(hub_id, each))
        self._json(found[: int(query.get("limit", 100))])

    def _info(self, hub_id: str, each: Repository) -> dict[str, Any]:
        return {
            "id": hub_id,
            "modelId": hub_id,
            "author": hub_id.split("/")[0],
            "sha": each.commit,
            "private": each.private,
            "gated": "manual" if each.gated else False,
            "downloads": 5,
            "likes": 3,
            "pipeline_tag": each.task,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "tags": [each.task, f"license:{each.licence}"],
            "config": each.config,
            "safetensors": {"parameters": {"BF16": each.parameters}, "total": each.parameters},
        }

    def _information(self, hub_id: str, revision: str) -> None:
        each = self._visible(hub_id, revision)
        if each is None:
            return
        siblings = []
        for name, content in each.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _git_hash(content)}
            if len(content) >= LARGE_BYTES:
                entry["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
            siblings.append(entry)
        self._json(self._info(hub_id, each) | {"siblings": siblings})

    def _visible(self, hub_id: str, revision: str) -> Repository | None:
        each = self.fake.repositories.get(hub_id)
        may_read = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if each is None or (each.private and not may_read):
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", each.commit):
            self._json({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return each
        return None

    def _resolve(self, hub_id: str, revision: str, file: str) -> None:
        each = self._visible(hub_id, revision)
        if each is None:
            return
        if each.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 403 if self.headers.get("Authorization") else 401
            self._json({"error": "Access to it is restricted"}, status, {"X-Error-Code": "GatedRepo"})
            return
        content = each.files.get(file)
        if content is None:
            self._json({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
        elif len(content) >= LARGE_BYTES:
            self.send_response(302)
            self.send_header("Location", f"/cdn/{hub_id}/{file}")
            self.send_header("X-Repo-Commit", each.commit)
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._content(content, file)

    def _content(self, content: bytes, file: str) -> None:
        if file in self.fake.damaged:
            content = bytes(len(content))
        start, status = 0, 200
        if (ranged := self.headers.get("Range")) is not None:
            start, status = int(ranged.removeprefix("bytes=").split("-")[0]), 206
        body = content[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if len(content) >= LARGE_BYTES and self.fake.break_after is not None:
            cut, self.fake.break_after = self.fake.break_after, None
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if len(content) >= LARGE_BYTES and self.fake.hold_after is not None and not self.fake.released.is_set():
            self.wfile.write(body[: self.fake.hold_after])
            self.wfile.flush()
            self.fake.is_holding.set()
            self.fake.released.wait(60)
            body = body[self.fake.hold_after :]
        self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
