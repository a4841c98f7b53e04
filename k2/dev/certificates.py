"""A certificate authority of our own, for servers on loopback that speak TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from k2.dev import tools
from k2.dev.cache import run
from k2.errors import ConfigError

_DAYS = "825"


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files. `server`: private key and certificate of 127.0.0.1 and localhost in one file."""

    ca: Path
    server: Path
    client: Path
    client_key: Path


def make_certificates(directory: Path) -> Certificates:
    """The authority's certificates in `directory`, made with openssl where they are missing."""
    made = Certificates(
        directory / "ca.pem",
        directory / "server.pem",
        directory / "client.pem",
        directory / "client.key",
    )
    if made.client.exists():
        return made
    if reason := tools.missing("openssl"):
        raise ConfigError(f"certificates cannot be made: {reason}")
    directory.mkdir(parents=True, exist_ok=True)
    ca_key = directory / "ca.key"
    _openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", _DAYS, "-subj", "/CN=k2-dev"),
        *("-keyout", str(ca_key), "-out", str(made.ca)),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    server_key, server = directory / "server.key", directory / "server.crt"
    _issue(made.ca, ca_key, server_key, server, "localhost")
    made.server.touch(mode=0o600)
    made.server.write_text(server_key.read_text() + server.read_text())
    _issue(made.ca, ca_key, made.client_key, made.client, "k2")
    return made


def _issue(ca: Path, ca_key: Path, key: Path, certificate: Path, name: str) -> None:
    request = key.with_suffix(".csr")
    extensions = key.with_suffix(".ext")
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    _openssl(
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
        *("-keyout", str(key), "-out", str(request)),
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key)),
        *("-CAcreateserial", "-days", _DAYS, "-extfile", str(extensions), "-out", str(certificate)),
    )


def _openssl(*arguments: str) -> None:
    run(["openssl", *arguments], "openssl could not make a certificate")
