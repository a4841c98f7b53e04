"""Is a Kafka there at all? Asked before anything else, so that a worker says whom it waits for.

Kafka's clients try again silently until their request times out, and then do not say which address
it was.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import LogError

log = structlog.get_logger(__name__)

#: Seconds for one address to take a connection, and between two rounds.
_CONNECT_S: Final = 3.0
_PAUSE_S: Final = 1.0
#: Seconds between two words about it.
_TELL_S: Final = 5.0

#: Why nobody takes connections at "host:port"; empty when somebody does.
Probe = Callable[[str], Awaitable[str]]


async def why_unreachable(address: str) -> str:
    """A `Probe` over TCP."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        return f"no answer within {_CONNECT_S:.0f} s"
    except OSError as exc:
        # asyncio's own text repeats the address; for a name nobody knows there is only a text.
        if exc.errno is not None and exc.errno > 0:
            return os.strerror(exc.errno).lower()
        return (exc.strerror or str(exc)).lower()
    writer.close()
    return ""


async def wait_reachable(
    servers: Sequence[str],
    limit_s: float,
    *,
    probe: Probe = why_unreachable,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Return once one of `servers` ("host:port") takes connections; tell which do not meanwhile.

    Raises `LogError` with the reason of each after `limit_s`.
    """
    began_s = clock.monotonic_s()
    told_s = float("-inf")
    while True:
        found = await asyncio.gather(*(probe(server) for server in servers))
        reasons = {server: why for server, why in zip(servers, found, strict=True) if why}
        if len(reasons) < len(set(servers)):
            return
        waited_s = clock.monotonic_s() - began_s
        if waited_s >= limit_s:
            raise _unreachable(reasons, limit_s)
        if clock.monotonic_s() - told_s >= _TELL_S:
            told_s = clock.monotonic_s()
            log.warning(
                "kafka_unreachable",
                servers=reasons,
                waited_s=round(waited_s, 1),
                giving_up_after_s=limit_s,
            )
        await clock.sleep(_PAUSE_S)


def _unreachable(reasons: Mapping[str, str], limit_s: float) -> LogError:
    told = ", ".join(f"{server} ({why})" for server, why in reasons.items())
    return LogError(
        f"Kafka does not answer at {told}; tried for {limit_s:.0f} s. Start it, correct "
        "K2_KAFKA_BOOTSTRAP_SERVERS, or wait longer with K2_KAFKA_START_TIMEOUT_S",
        servers=list(reasons),
    )
