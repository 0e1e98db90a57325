"""The console's styles, scripts, fonts and icons, under an address that changes with their content.

In: the files of `static/`, read once. Out: `/static/<digest>/<path>`, kept by browsers for a year; the digest is that
of all of them together, so that one file finds another beside it. A path is looked up in a table, never on the disk.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.errors import Unknown
from tunesmith.spec.faults import shown

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
COMPRESSED = frozenset({".css", ".js", ".svg"})
FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFile:
    media_type: str
    plain: bytes
    gzipped: bytes | None


class StaticFiles:
    @cached_property
    def files(self) -> dict[str, StaticFile]:
        found: dict[str, StaticFile] = {}
        for path in sorted(FOLDER.rglob("*")):
            if path.suffix in TYPES and path.is_file():
                plain = path.read_bytes()
                gzipped = gzip.compress(plain, mtime=0) if path.suffix in COMPRESSED else None
                name = path.relative_to(FOLDER).as_posix()
                found[name] = StaticFile(media_type=TYPES[path.suffix], plain=plain, gzipped=gzipped)
        return found

    @cached_property
    def digest(self) -> str:
        whole = hashlib.sha256()
        for name, file in self.files.items():
            whole.update(name.encode() + b"\0" + hashlib.sha256(file.plain).digest())
        return whole.hexdigest()[:16]

    def url(self, name: str) -> str:
        """Of a file that is there; a template that names another one is a fault of ours."""
        if name not in self.files:
            raise KeyError(name)
        return f"/static/{self.digest}/{name}"

    def icon(self, name: str) -> str:
        """An icon's drawing, to stand inside the page, where it takes the text's colour."""
        source = self.files[f"vendor/lucide/{name}.svg"].plain.decode()
        return " ".join(re.sub(r"<!--.*?-->|<svg.*?>|</svg>", "", source, flags=re.DOTALL).split())

    def answer(self, request: Request, digest: str, path: str) -> Response:
        file = self.files.get(path)
        if file is None:
            raise Unknown("UNKNOWN_FILE", f"There is no {shown(path)} here.", field="path")
        headers = {"Cache-Control": FOR_EVER if digest == self.digest else "no-cache", "Vary": "Accept-Encoding"}
        if file.gzipped is not None and "gzip" in (request.headers.get("accept-encoding") or ""):
            return Response(file.gzipped, headers=headers | {"Content-Encoding": "gzip"}, media_type=file.media_type)
        return Response(file.plain, headers=headers, media_type=file.media_type)
