"""What the console serves from its own folder: addresses, sizes, and that what others made is what it claims to be."""

from __future__ import annotations

import gzip
import hashlib
import json
import re

from starlette.testclient import TestClient

from tests.server.conftest import URL
from tunesmith.server.app import create_app
from tunesmith.server.console import TEMPLATES, Console
from tunesmith.server.service import Service
from tunesmith.server.static_files import FOLDER, StaticFiles

MAXIMUM_SCRIPT_BYTES = 150_000
VENDOR = FOLDER / "vendor"


def test_vendored_files_are_those_of_their_packages_with_a_licence() -> None:
    packages = json.loads((VENDOR / "manifest.json").read_text())["packages"]
    known = {"manifest.json"}
    for package in packages:
        assert package["version"] and package["licence"]
        assert any(name.startswith("LICENSE") for name in package["files"])
        for name, sha256 in package["files"].items():
            path = VENDOR / package["folder"] / name
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256, path
            known.add(f"{package['folder']}/{name}")
    assert {path.relative_to(VENDOR).as_posix() for path in VENDOR.rglob("*") if path.is_file()} == known


def test_all_scripts_together_stay_small() -> None:
    total = sum(len(gzip.compress(path.read_bytes(), 9)) for path in FOLDER.rglob("*.js"))
    assert total < MAXIMUM_SCRIPT_BYTES


def test_a_file_is_kept_for_a_year_under_the_present_digest_only(service: Service) -> None:
    static = StaticFiles()
    with TestClient(create_app(service, console=Console()), base_url=URL) as client:
        answer = client.get(static.url("css/console.css"))
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-type"] == "text/css; charset=utf-8"
        assert answer.headers["content-encoding"] == "gzip"
        old = client.get("/static/0000000000000000/css/console.css")
        assert (old.status_code, old.headers["cache-control"], old.content) == (200, "no-cache", answer.content)
        plain = client.get(static.url("css/console.css"), headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers and plain.content == answer.content
        for path in ("css/nothing.css", "../console.py", "..%2fconsole.py", "vendor/manifest.json", "css"):
            assert client.get(f"/static/{static.digest}/{path}").status_code in (400, 404)


def test_every_icon_and_file_that_a_template_names_is_there() -> None:
    static = StaticFiles()
    for path in sorted(TEMPLATES.rglob("*.html")):
        text = path.read_text()
        for name in re.findall(r"static\('([^']+)'\)", text):
            assert static.url(name), path
        for name in re.findall(r"icon\(\"([a-z0-9-]+)\"", text):
            assert static.icon(name), path
