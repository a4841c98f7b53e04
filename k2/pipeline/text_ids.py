"""Ids that are no numbers: rows of tapes, and trades of feeds that give them no id.

They are judged like numbers, each in a scope of its own: a tape's row within its symbol and the
file's digest, however often and in whatever parts the file is loaded; any other id as a hash within
its symbol and hour, so that what an exchange sends again within an hour is known. Only membership
counts: there is no order, and what is missing is not a gap.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2.pipeline.continuity import Continuity, Policy, Seeder, Trimmed
from k2.pipeline.intervals import Ids

#: `{digest}-{row}` of a tape.
DIGEST_CHARS: Final = 16
_TAPE: Final = f"^[0-9a-f]{{{DIGEST_CHARS}}}-[0-9]{{1,18}}$"
_HOUR_US: Final = 3_600_000_000
_HOUR_MARK: Final = "@"
#: Hours of hashes kept: the running one, and the one before it whole.
_HOURS: Final = 2
#: Hashes do not collapse to intervals: a busy symbol has tens of thousands in an hour.
_MAX_RUNS: Final = 65_536


class TextIds(Continuity):
    """Continuity over scopes instead of symbols."""

    def __init__(self, *, seed: Seeder | None = None, max_symbols: int = 10_000) -> None:
        super().__init__(Policy.SET, seed=seed, max_symbols=max_symbols, max_runs=_MAX_RUNS)

    def trim(self, stored_through: int) -> Trimmed:
        """Let go hours that are over, once the lake has them; then hold to the bounds."""
        hours = {name: hour for name in self.tracks if (hour := _hour_of(name)) is not None}
        oldest = max(hours.values(), default=0) - _HOURS + 1
        gone = [
            name
            for name, hour in hours.items()
            if hour < oldest
            and (self.seed is None or self.tracks[name].last_offset <= stored_through)
        ]
        for name in gone:
            del self.tracks[name]
        self.evicted |= bool(gone) and self.seed is not None
        rest = super().trim(stored_through)
        return rest._replace(symbols=rest.symbols + len(gone))


def scoped(
    kind: str, symbols: pa.Array, texts: pa.Array, times_us: Ids
) -> tuple[pa.Array, Ids, npt.NDArray[np.bool_]]:
    """(scope, id within it, whether it is judged at all) of rows whose ids are text.

    Quotes without an id of their own are not judged: the same quote twice is no mistake.
    """
    count = len(texts)
    scopes: npt.NDArray[np.object_] = np.full(count, "", object)
    ids = np.zeros(count, np.int64)
    tape = pc.match_substring_regex(texts, _TAPE)
    of_tape = tape.to_numpy(zero_copy_only=False)
    if of_tape.any():
        mine = texts.filter(tape)
        digests = pc.utf8_slice_codeunits(mine, 0, DIGEST_CHARS)
        names = pc.binary_join_element_wise(symbols.filter(tape), digests, "/")
        scopes[of_tape] = names.to_numpy(zero_copy_only=False)
        rows = pc.utf8_slice_codeunits(mine, DIGEST_CHARS + 1, None)
        ids[of_tape] = rows.cast(pa.int64()).to_numpy()
    judged = of_tape
    if kind == "trades":
        for row in np.flatnonzero(~of_tape).tolist():
            scopes[row] = f"{symbols[row].as_py()}{_HOUR_MARK}{int(times_us[row]) // _HOUR_US}"
            ids[row] = hashed(texts[row].as_py())
        judged = np.ones(count, np.bool_)
    return pa.array(scopes, pa.string()), ids, judged


def hashed(text: str) -> int:
    """63 bits of an id."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def symbol_of(scope: str) -> str:
    """The symbol of a scope."""
    return scope.partition(_HOUR_MARK)[0].partition("/")[0]


def start_us_of(scope: str) -> int | None:
    """The earliest time a row of the scope may have; None for tapes, which say nothing of it."""
    hour = _hour_of(scope)
    return None if hour is None else hour * _HOUR_US


def _hour_of(scope: str) -> int | None:
    _, mark, hour = scope.partition(_HOUR_MARK)
    return int(hour) if mark else None
