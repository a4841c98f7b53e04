"""A port that is taken is told before the worker opens anything."""

from __future__ import annotations

import socket

import pytest

from k2.errors import ConfigError
from k2.web.port import check_port


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"K2_API_PORT={port}.*address already in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_any_port_is_always_free() -> None:
    check_port("127.0.0.1", 0)


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(ConfigError, match="K2_API_HOST='no-such-host"):
        check_port("no-such-host.invalid", 8000)
