"""Times that come in bursts, because what happens makes more happen: a Hawkes process."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Events that one event leads to directly, on average; the rest come by themselves.
BRANCHING: Final = 0.8
#: How soon they follow: the share of the excitement that is gone per mean time between events.
DECAY: Final = 0.25


class Arrivals:
    """Rising times with one event per unit of time on average.

    Events that come by themselves are a Poisson stream; each leads to a Poisson number of others,
    after exponential delays, and so do they. Drawn as clusters (Hawkes and Oakes 1974), which is
    exact and needs no loop over events.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._until = 0.0
        #: What was led to, but comes after what has been drawn so far.
        self._later: Floats = np.empty(0)
        self._ready: Floats = np.empty(0)

    def next(self, count: int) -> Floats:
        """The times of the next `count` events."""
        while len(self._ready) < count:
            self._ready = np.concatenate([self._ready, self._drawn(float(count))])
        taken, self._ready = self._ready[:count], self._ready[count:]
        return taken

    def _drawn(self, length: float) -> Floats:
        """All events of the next `length` units."""
        start, end = self._until, self._until + length
        self._until = end
        alone = self._rng.poisson((1 - BRANCHING) * length)
        due = self._later < end
        wave = np.concatenate([self._later[due], self._rng.uniform(start, end, alone)])
        found, later = [wave], [self._later[~due]]
        while len(wave):
            parents = np.repeat(wave, self._rng.poisson(BRANCHING, len(wave)))
            children = parents + self._rng.exponential(1 / DECAY, len(parents))
            wave = children[children < end]
            found.append(wave)
            later.append(children[children >= end])
        self._later = np.concatenate(later)
        return np.sort(np.concatenate(found))
