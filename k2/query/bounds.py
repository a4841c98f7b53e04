"""What a query can see of a table: known before a file is opened, so that most are not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from k2.lake.files import symbol_bucket


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a query can see of a table. `symbols` None: all. Times in µs, `start` in, `end` out."""

    symbols: frozenset[str] | None = None
    start_us: int | None = None
    end_us: int | None = None

    def meet(self, symbols: tuple[str, str] | None, times_us: tuple[int, int] | None) -> bool:
        """False when nothing between these ends (None: not known) is within the bounds."""
        if self.symbols is not None and symbols is not None:
            low, high = symbols
            if not any(low <= symbol <= high for symbol in self.symbols):
                return False
        if times_us is None:
            return True
        first, last = times_us
        after = self.start_us is not None and last < self.start_us
        return not after and (self.end_us is None or first < self.end_us)

    def of_bucket(self, bucket: int | None) -> Bounds:
        """What of them can be in files of one bucket; None: files of another partitioning."""
        if bucket is None or self.symbols is None:
            return self
        own = frozenset(symbol for symbol in self.symbols if symbol_bucket(symbol) == bucket)
        return replace(self, symbols=own)
