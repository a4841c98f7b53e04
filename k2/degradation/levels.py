"""The five levels, and what each still does."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Level(IntEnum):
    """How much the platform does (DEG-01, DEG-02); higher is less."""

    #: Everything.
    NORMAL = 0
    #: Without enrichment.
    SOFT = 1
    #: Without tier 3.
    GRACEFUL = 2
    #: Tier 1 only.
    AGGRESSIVE = 3
    #: Ids are still judged, so that what is put off is known exactly; all of it is put off, and
    #: the API answers 503.
    CIRCUIT_BREAK = 4


#: What each level does, for people.
MEANING: Final = {
    Level.NORMAL: "nothing is put off",
    Level.SOFT: "answers come without what instruments are",
    Level.GRACEFUL: "records of tier 3 are put off",
    Level.AGGRESSIVE: "records of tiers 2 and 3 are put off",
    Level.CIRCUIT_BREAK: "all records are put off, and queries are refused",
}

#: The last tier each level lets through.
TIERS_KEPT: Final = {
    Level.NORMAL: 3,
    Level.SOFT: 3,
    Level.GRACEFUL: 2,
    Level.AGGRESSIVE: 1,
    Level.CIRCUIT_BREAK: 0,
}
