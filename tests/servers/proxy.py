"""A proxy in front of an S3 server: behaves like OCI's S3 interface, or like a store in trouble.

`oci_rules` refuses what OCI refuses. `faults` decides per request what goes wrong, by the names in `Fault`.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, urlsplit

Fault = Literal[
    "500", "503", "garbage", "drop", "drop-answer", "slow", "short", "flip", "redirect", "secretive", "full"
]
Chooser = Callable[[str, str], Fault | None]  # (method, path with query)

REFUSED = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
    "<Message>remote-secret-text</Message><RequestId>1</RequestId></Error>"
)
HOP_HEADERS = frozenset({"connection", "transfer-encoding", "keep-alive", "expect"})


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str, *, oci_rules: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.oci_rules = oci_rules
        self.faults: Chooser = lambda _method, _path: None
        self.seen: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path))
        if self.server.oci_rules and (code := self._oci_refusal()) is not None:
            return self._answer(501, REFUSED.format(code=code).encode())
        fault = self.server.faults(self.command, self.path)
        if fault in ("500", "503"):
            code = "InternalError" if fault == "500" else "SlowDown"
            return self._answer(int(fault), REFUSED.format(code=code).encode())
        if fault == "full":
            return self._answer(507, REFUSED.format(code="XMinioStorageFull").encode())
        if fault == "secretive":
            return self._answer(403, REFUSED.format(code="AccessDenied").encode())
        if fault == "garbage":
            return self._answer(200, b"<html>captive portal</html", {"Content-Type": "text/html"})
        if fault == "redirect":
            return self._answer(301, b"", {"Location": "http://169.254.169.254/latest/"})
        if fault == "drop":
            self.close_connection = True
            return None
        if fault == "slow":
            time.sleep(1.0)
        return self._forward(body, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _oci_refusal(self) -> str | None:
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "versioning" in query:
            return "NotImplemented"
        if "aws-chunked" in self.headers.get("Content-Encoding", "") or self.headers.get(
            "x-amz-content-sha256", ""
        ).startswith("STREAMING"):
            return "NotImplemented"
        if "delete" in query and any("crc" in name.lower() for name in self.headers):
            return "NotImplemented"
        return None

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        upstream = http.client.HTTPConnection(self.server.target, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
            upstream.request(self.command, self.path, body=body or None, headers=headers)
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        if fault == "drop-answer":
            self.close_connection = True
            return
        if fault == "flip" and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        given = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS}
        if fault == "short" and len(content) > 1:
            # the length told is right, the body ends early
            self._answer(answer.status, content[: len(content) // 2], given | {"Content-Length": str(len(content))})
            self.close_connection = True
            return
        self._answer(answer.status, content, given)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        given = {name.lower(): value for name, value in (headers or {}).items()}
        if self.command != "HEAD" or "content-length" not in given:
            given.setdefault("content-length", str(len(content)))
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(content)


@contextmanager
def proxy_server(target: str, *, oci_rules: bool = False) -> Generator[Proxy]:
    proxy = Proxy(target, oci_rules=oci_rules)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
