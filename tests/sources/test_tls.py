"""Certificates are checked by default; an own authority can be trusted, checking be turned off."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from k2.errors import SourceError
from k2.sources.connector import AiohttpConnector, Event


def self_signed(directory: Path) -> tuple[Path, Path]:
    """(certificate, key) for 127.0.0.1, valid for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "k2 test")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "cert.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def stream(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.send_str("hello")
        await ws.close()
        return ws

    app = web.Application()
    app.router.add_get("/stream", stream)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield f"wss://127.0.0.1:{runner.addresses[0][1]}/stream", certificate
    await runner.cleanup()


async def first(connector: AiohttpConnector, url: str) -> tuple[Event, bytes]:
    try:
        socket = await connector.connect(url)
        received = await socket.receive()
        await socket.close()
        return received
    finally:
        await connector.close()


async def test_an_unknown_authority_is_refused_with_the_remedy(secure: tuple[str, Path]) -> None:
    with pytest.raises(SourceError, match="K2_BINANCE_CUSTOM_CA_BUNDLE"):
        await first(AiohttpConnector(), secure[0])


async def test_an_own_authority_can_be_trusted(secure: tuple[str, Path]) -> None:
    url, certificate = secure
    received = await first(AiohttpConnector(ca_bundle=str(certificate)), url)
    assert received == (Event.FRAME, b"hello")


async def test_checking_can_be_turned_off(secure: tuple[str, Path]) -> None:
    assert await first(AiohttpConnector(ssl_verify=False), secure[0]) == (Event.FRAME, b"hello")
