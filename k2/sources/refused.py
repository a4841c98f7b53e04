"""Frames that could not become records."""

from __future__ import annotations

from typing import NamedTuple

#: Bytes kept of a frame that is refused for its size.
RAW_KEPT_BYTES = 65_536


class Refused(NamedTuple):
    """A refused frame for the dead letters.

    `reason`: `bad_json`, `bad_fields`, `unknown_symbol`, `symbol_mismatch`, `unknown_frame`,
    `exchange_error` or `frame_too_large` (then `raw` is its beginning).
    """

    reason: str
    raw: bytes
    detail: str
    recv_us: int
