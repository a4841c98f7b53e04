"""The port of the API, looked at before anything else is started."""

from __future__ import annotations

import socket

from k2.errors import ConfigError


def check_port(host: str, port: int) -> None:
    """Raises `ConfigError` when the worker could not listen there.

    Faust would find out after log and lake were opened, and say it in a traceback.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        raise ConfigError(
            f"K2_API_HOST={host!r}, K2_API_PORT={port}: the API cannot listen there: "
            f"{(exc.strerror or str(exc)).lower()}; stop what listens there, or choose another",
            variable="K2_API_PORT",
        ) from exc
