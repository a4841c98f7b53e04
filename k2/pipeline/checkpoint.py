"""Checkpoints: state and position of one partition as one value.

A value above the message limit is split. The two newest generations are kept under different keys,
so that a set torn by a crash is seen (its chunks or its checksum do not fit) and the older one,
which is complete, is used.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import cramjam
import msgspec
import numpy as np
import structlog

from k2.errors import LogCorruptError
from k2.pipeline.continuity import Continuity, Policy, Track
from k2.pipeline.intervals import Ids, IntervalSet
from k2.pipeline.sequence import Contiguous, Generation, Rising

log = structlog.get_logger(__name__)

VERSION: Final = 1
#: Below Kafka's default limit of a message, with room for key and headers.
MAX_CHUNK_BYTES: Final = 900_000
_HEAD: Final = struct.Struct(">4sQHHI")
_MAGIC: Final = b"K2C1"
#: Fast enough to run between two batches; higher levels save little on shuffled columns.
_LEVEL: Final = 3

Entry = tuple[bytes, bytes]


class State(msgspec.Struct, array_like=True, frozen=True):
    """A decoded checkpoint.

    `columns`: int64 arrays by name, see `dump`; `texts`: a checkpoint of its own, or nothing.
    """

    version: int
    epoch: str
    next_offset: int
    policy: str
    session: bytes
    evicted: bool
    symbols: list[str]
    sessions: list[bytes]
    columns: dict[str, bytes]
    texts: bytes = b""


def encode(
    continuity: Continuity, epoch: str, next_offset: int, texts: Continuity | None = None
) -> bytes:
    """State and position as bytes; `texts` is the state of ids that are no numbers, if any."""
    sessions: dict[bytes, int] = {}
    columns = dump(continuity, sessions)
    state = State(
        VERSION,
        epoch,
        next_offset,
        str(continuity.policy),
        continuity.session,
        continuity.evicted,
        list(continuity.tracks),
        list(sessions),
        {name: _shuffled(values) for name, values in columns.items()},
        encode(texts, epoch, next_offset) if texts is not None and texts.known else b"",
    )
    return bytes(cramjam.zstd.compress(msgspec.msgpack.encode(state), _LEVEL))


def decode(raw: bytes) -> State:
    """Inverse of `encode`, columns still packed. Raises `LogCorruptError`."""
    try:
        state = msgspec.msgpack.decode(bytes(cramjam.zstd.decompress(raw)), type=State)
    except (cramjam.DecompressionError, msgspec.MsgspecError) as exc:
        raise LogCorruptError(f"checkpoint of {len(raw)} bytes is not readable: {exc}") from exc
    if state.version != VERSION:
        raise LogCorruptError(
            f"checkpoint has version {state.version}; this program knows {VERSION}; run the "
            "version that wrote it, or clear the continuity table to start afresh from the lake"
        )
    return state


def dump(continuity: Continuity, sessions: dict[bytes, int]) -> dict[str, Sequence[int]]:
    """The state as columns; `sessions` is filled with the sessions they refer to by number.

    Columns of tracks, then of generations (current, then previous), then lists flattened.
    """
    tracks = continuity.tracks.values()
    columns: dict[str, Sequence[int]] = {
        "resets": [track.resets for track in tracks],
        "own": [track.own for track in tracks],
        "last_offset": [track.last_offset for track in tracks],
        "forgotten": [track.forgotten for track in tracks],
        "previous": [track.previous is not None for track in tracks],
    }
    generations = [g for t in tracks for g in (t.current, t.previous) if g is not None]
    columns["at"] = [generation.at for generation in generations]
    columns["last_us"] = [generation.last_us for generation in generations]
    columns |= _flat("seen", [generation.seen for generation in generations])
    if continuity.policy is Policy.RISING:
        rising = [g for g in generations if isinstance(g, Rising)]
        # The property first: it settles what is recent.
        columns["floor"] = [generation.floor for generation in rising]
        columns["session"] = [sessions.setdefault(g.session, len(sessions)) for g in rising]
        columns["recent_size"] = [len(generation.recent) for generation in rising]
        columns["recent"] = _joined(generation.recent for generation in rising)
    else:
        contiguous = [g for g in generations if isinstance(g, Contiguous)]
        columns |= _flat("gaps", [generation.gaps for generation in contiguous])
    return columns


def _flat(name: str, sets: list[IntervalSet]) -> dict[str, Sequence[int]]:
    return {
        f"{name}_size": [len(one) for one in sets],
        f"{name}_starts": _joined(one.starts for one in sets),
        f"{name}_ends": _joined(one.ends for one in sets),
    }


def _joined(parts: Iterable[array[int]]) -> array[int]:
    flat = array("q")
    for part in parts:
        flat.extend(part)
    return flat


def _shuffled(values: Sequence[int]) -> bytes:
    """Differences with equal bytes side by side: mostly zeros, which compress to nothing."""
    steps = np.diff(np.asarray(values, np.int64), prepend=np.int64(0))
    return steps.view(np.uint8).reshape(-1, 8).T.tobytes()


def _unshuffled(raw: bytes) -> Ids:
    """Inverse of `_shuffled`; differences wrap as they did there."""
    steps = np.frombuffer(raw, np.uint8).reshape(8, -1).T
    return np.cumsum(np.ascontiguousarray(steps).view(np.int64).ravel())


def load(continuity: Continuity, state: State) -> None:
    """Put `state` in place of the state of `continuity`. Raises `LogCorruptError`."""
    if state.policy != continuity.policy:
        raise LogCorruptError(
            f"checkpoint holds ids of a {state.policy} feed; this feed is {continuity.policy}; "
            "clear the continuity table to start afresh from the lake"
        )
    columns = _Columns({name: _unshuffled(raw) for name, raw in state.columns.items()})
    continuity.session = state.session
    continuity.evicted = state.evicted
    continuity.tracks = {symbol: Track(symbol, continuity.generation()) for symbol in state.symbols}
    for track in continuity.tracks.values():
        track.resets = columns.one("resets")
        track.own = bool(columns.one("own"))
        track.last_offset = columns.one("last_offset")
        track.forgotten = columns.one("forgotten")
        _load_generation(track.current, columns, state.sessions)
        continuity.forgot |= track.forgotten >= 0
        if columns.one("previous"):
            track.previous = continuity.generation()
            _load_generation(track.previous, columns, state.sessions)


class _Columns:
    """Columns read from front to back."""

    def __init__(self, columns: dict[str, Ids]) -> None:
        self._arrays = {name: array("q", values.tobytes()) for name, values in columns.items()}
        self._at: dict[str, int] = defaultdict(int)

    def one(self, name: str) -> int:
        return self._arrays[name][self._step(name, 1)]

    def many(self, name: str, size: int) -> array[int]:
        start = self._step(name, size)
        return self._arrays[name][start : start + size]

    def runs(self, name: str) -> IntervalSet:
        made, size = IntervalSet(), self.one(f"{name}_size")
        made.starts, made.ends = self.many(f"{name}_starts", size), self.many(f"{name}_ends", size)
        return made

    def _step(self, name: str, size: int) -> int:
        start = self._at[name]
        self._at[name] = start + size
        return start


def _load_generation(made: Generation, columns: _Columns, sessions: list[bytes]) -> None:
    made.at = columns.one("at")
    made.last_us = columns.one("last_us")
    made.seen = columns.runs("seen")
    if isinstance(made, Rising):
        made.floor = columns.one("floor")
        made.session = sessions[columns.one("session")]
        made.recent = columns.many("recent", columns.one("recent_size"))
    elif isinstance(made, Contiguous):
        made.gaps = columns.runs("gaps")


def split(generation: int, payload: bytes, max_chunk_bytes: int = MAX_CHUNK_BYTES) -> list[Entry]:
    """The entries of one checkpoint; they replace those of the generation before the last.

    Keys are `slot/chunk`; the table puts topic and partition before them.
    """
    parts = [
        payload[start : start + max_chunk_bytes]
        for start in range(0, len(payload), max_chunk_bytes)
    ] or [b""]
    checksum = zlib.crc32(payload)
    return [
        (
            f"{generation % 2}/{number}".encode(),
            _HEAD.pack(_MAGIC, generation, number, len(parts), checksum) + part,
        )
        for number, part in enumerate(parts)
    ]


def join(entries: Iterable[Entry]) -> tuple[int, bytes] | None:
    """(generation, payload) of the newest complete checkpoint among a partition's entries.

    None when none is complete, or there is none: reading the log again from its start is slow and
    exact, as readers know what they have. Raises `LogCorruptError` on entries of something else.
    """
    chunks: dict[tuple[int, int, int], dict[int, bytes]] = {}
    for key, value in entries:
        if value[:4] != _MAGIC or len(value) < _HEAD.size:
            raise LogCorruptError(f"entry {key!r} of the continuity table is no checkpoint")
        _, generation, number, count, checksum = _HEAD.unpack_from(value)
        chunks.setdefault((generation, count, checksum), {})[number] = value[_HEAD.size :]
    for (generation, count, checksum), parts in sorted(chunks.items(), reverse=True):
        payload = b"".join(parts[number] for number in sorted(parts))
        if len(parts) == count and zlib.crc32(payload) == checksum:
            return generation, payload
        log.warning("checkpoint_torn", generation=generation, chunks=len(parts), of=count)
    return None


def describe(state: State) -> dict[str, Any]:
    """What a checkpoint says, for people."""
    return {
        "epoch": state.epoch,
        "next_offset": state.next_offset,
        "policy": state.policy,
        "symbols": len(state.symbols),
    }
