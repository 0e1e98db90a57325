"""What stands before a Jupyter server on a hub: TLS under a name of its own, many users' servers below one path.

As JupyterHub's configurable-http-proxy does it: a path belongs to one user's server and reaches it whole, nothing of it
taken off; the browser's Host and Origin stay; how the browser came is told in `X-Forwarded-...`. Every other path is
somebody else's: a request there is noted, and answered 404.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from yarl import URL

NAME = "hub.example.org"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer"}


@contextmanager
def serving(folder: Path, *, base: str, port: int) -> Iterator[tuple[int, list[str]]]:
    """base: the path of the user's server, with a slash at its end; port: where that server listens. Gives the hub's
    own port and the paths that were asked for and belong to nobody."""
    strayed: list[str] = []
    told: list[int] = []
    is_up, is_over, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        connector = aiohttp.TCPConnector(force_close=True)  # one that Jupyter closes meanwhile is no fault
        forever = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(auto_decompress=False, connector=connector, timeout=forever) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                if not request.raw_path.startswith(base):
                    strayed.append(request.raw_path)
                    return web.Response(status=404)
                headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
                headers += [("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Proto", "https")]
                headers += [("X-Forwarded-Host", request.host), ("X-Forwarded-Port", request.host.rpartition(":")[2])]
                asked = session.request(
                    request.method, URL(f"http://127.0.0.1:{port}{request.raw_path}", encoded=True), headers=headers,
                    data=request.content if request.body_exists else None, allow_redirects=False,
                )  # fmt: skip
                async with asked as answer:
                    found = web.StreamResponse(status=answer.status)
                    for name, value in answer.headers.items():
                        if name.lower() not in HOP_BY_HOP:
                            found.headers.add(name, value)
                    with suppress(ConnectionResetError):  # the browser went on, as it may
                        await found.prepare(request)
                        async for chunk in answer.content.iter_any():
                            await found.write(chunk)
                        await found.write_eof()
                    return found

            answering = web.Server(handle)
            runner = web.ServerRunner(answering, shutdown_timeout=1.0, handler_cancellation=True)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=_certificate(folder))
            await site.start()
            server: Any = site._server
            told.append(server.sockets[0].getsockname()[1])
            is_up.set()
            await is_over.wait()
            while answering.connections:  # the browser has closed them; TLS takes a moment to hear of it
                await asyncio.sleep(0.01)
            await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert is_up.wait(60)
    try:
        yield told[0], strayed
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join(30)
        loop.close()


def _certificate(folder: Path) -> ssl.SSLContext:
    """Its own: the browser is told to take it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    private = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "hub.pem").write_bytes(private + made.public_bytes(form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "hub.pem")
    return context
