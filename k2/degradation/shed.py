"""Shedding: what a level puts off, and the exact note of it.

The note travels in a header of the emitted group whose range it belongs to, so that it is written
if and only if the group is, and the group that counts (the first of its range) carries the note
that counts. Written anywhere else, a crash between the two would lose the records or bring them
twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from k2.degradation.levels import TIERS_KEPT, Level
from k2.errors import DecodeError

SHED_HEADER: Final = "k2-shed"
_Offsets = npt.NDArray[np.int64]


class ShedRange(msgspec.Struct, array_like=True, frozen=True):
    """Records of one tier put off in `first..last` of a log of record.

    `first`, `last`: the lowest and highest of their offsets; `bits`: which of the offsets between
    they have, a packed bitmap (deflated).
    """

    epoch: str
    topic: str
    partition: int
    tier: int
    first: int
    last: int
    count: int
    bits: bytes

    @classmethod
    def of(cls, epoch: str, topic: str, partition: int, tier: int, offsets: _Offsets) -> ShedRange:
        """`offsets`: int64, rising, at least one."""
        first, last = int(offsets[0]), int(offsets[-1])
        mask = np.zeros(last - first + 1, np.bool_)
        mask[offsets - first] = True
        bits = zlib.compress(np.packbits(mask).tobytes(), 1)
        return cls(epoch, topic, partition, tier, first, last, len(offsets), bits)

    def offsets(self) -> _Offsets:
        """The offsets, rising. Raises `DecodeError`."""
        try:
            packed = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        except zlib.error as exc:
            raise DecodeError(
                f"shed range {self.first}..{self.last} of {self.topic}[{self.partition}] is not "
                f"readable: {exc}"
            ) from exc
        return np.flatnonzero(np.unpackbits(packed)) + self.first

    def ranges(self) -> list[tuple[int, int]]:
        """The offsets as inclusive runs."""
        offsets = self.offsets()
        cuts = np.flatnonzero(np.diff(offsets) != 1)
        starts = offsets[np.concatenate(([0], cuts + 1))]
        ends = offsets[np.concatenate((cuts, [len(offsets) - 1]))]
        return list(zip(starts.tolist(), ends.tolist(), strict=True))

    def above(self, offset: int) -> ShedRange | None:
        """The part with offsets above `offset`."""
        if self.first > offset:
            return self
        if self.last <= offset:
            return None
        offsets = self.offsets()
        return ShedRange.of(
            self.epoch, self.topic, self.partition, self.tier, offsets[offsets > offset]
        )


class Shedder:
    """Decides by tier."""

    def mask(self, level: int, tiers: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_] | None:
        """Bool per row, False for what is put off; None when nothing is."""
        kept = TIERS_KEPT[Level(level)]
        return None if kept >= 3 else tiers <= kept


def to_header(ranges: Sequence[ShedRange]) -> bytes:
    """Header value of `SHED_HEADER`."""
    return msgspec.msgpack.encode(ranges)


def from_header(raw: bytes) -> list[ShedRange]:
    """Inverse of `to_header`. Raises `DecodeError`."""
    try:
        return msgspec.msgpack.decode(raw, type=list[ShedRange])
    except msgspec.MsgspecError as exc:
        raise DecodeError(f"header {SHED_HEADER!r} is not readable: {exc}") from exc
