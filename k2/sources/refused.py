"""Frames that could not become records."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

#: What decoding a frame of an exchange may raise.
DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
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


def undecodable(exc: Exception, raw: bytes, recv_us: int) -> Refused:
    """The refusal of a frame that decoding failed on with one of `DECODE_ERRORS`."""
    reason = "bad_fields" if isinstance(exc, msgspec.ValidationError) else "bad_json"
    return Refused(reason, raw, str(exc), recv_us)
