"""What an exchange must offer to be a source: one module each, all held to one behaviour suite.

An `Exchange` plans sessions, says how to ask for them (`ExchangeProtocol`) and how frames become
columns (`FrameMapper`). Reconnects, pings, rotation, limits, order, dead letters and the log are
the same for all and not its business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from k2.setting_feeds import Feed
from k2.sources.link import ExchangeProtocol
from k2.sources.plan import SessionSpec
from k2.sources.refused import Refused

#: (receive time in microseconds UTC, the frame's bytes)
Received = tuple[int, bytes]


@dataclass(slots=True)
class Mapped:
    """What a run of frames became.

    `trades`, `quotes`, `agg_trades`: wire batches (`k2.records`), None when there are none; rows
    keep the order of the frames. `ignored`: frames of channels not asked for, by channel.
    `control`: answers to our own messages and heartbeats. `delay_us`: receive time minus exchange
    time of the last trade (the clocks differ: it may be negative).
    """

    trades: pa.RecordBatch | None = None
    quotes: pa.RecordBatch | None = None
    agg_trades: pa.RecordBatch | None = None
    refused: list[Refused] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    control: int = 0
    delay_us: int | None = None

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """(data type, records) of what there is."""
        for data_type in ("trades", "quotes", "agg_trades"):
            batch = getattr(self, data_type)
            if batch is not None:
                yield data_type, batch


class FrameMapper(Protocol):
    """Frames of one session to columns."""

    def map(
        self, frames: Sequence[Received], *, ingestion_us: int, is_backfill: bool = False
    ) -> Mapped:
        """Columns of `frames` in their order; never raises, what cannot be mapped is refused.

        Decimals stay the exchange's own digits, times become microseconds UTC, the exchange's own
        id is the record's. `ingestion_us`: when they are handed to the log.
        """


class Exchange(Protocol):
    """One source of the catalogue (`k2.sources.exchanges`)."""

    @property
    def name(self) -> str:
        """Its name in settings, sessions and topics: lower case."""

    def sessions(self, settings: Any) -> list[SessionSpec]:
        """Every session of the configuration. Raises `ConfigError`."""

    def protocol(self, spec: SessionSpec, settings: Any) -> ExchangeProtocol:
        """How to ask for what `spec` names."""

    def mapper(self, spec: SessionSpec, settings: Any) -> FrameMapper:
        """How its frames are read; one per session, it may keep state."""


def prefix_of(settings: Feed) -> str:
    """What the variables of a feed begin with: `K2_KRAKEN_`."""
    return str(type(settings).model_config.get("env_prefix", ""))
