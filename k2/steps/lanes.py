"""Validators as this worker makes them: with codecs, tiers, and seeds from the lake."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog
from faust.types import TP

from k2.clock import Clock
from k2.codecs import Codecs
from k2.degradation.tiers import Tiers, load_tiers
from k2.errors import LakeError
from k2.lake.seed import Known, LakeSeeds, Seed
from k2.lake.vector import Place
from k2.lakehouse import Lakehouse
from k2.pipeline.validate import LaneCodecs, Validator
from k2.settings import Settings
from k2.topics import MarketTopic, parse

log = structlog.get_logger(__name__)

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 3.0


class LakeSeeder:
    """Ids that the lake has of one partition's symbols (`k2.pipeline.continuity.Seeder`).

    A lake that does not answer is asked again as long as a commit would be; blocking. `wait` is
    injected for tests.
    """

    def __init__(
        self,
        lake: Lakehouse,
        topic: MarketTopic,
        epoch: str,
        *,
        other_epochs: bool,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wait = wait
        self._lake = lake
        self._topic = topic
        self._epoch = epoch
        self._other_epochs = other_epochs

    def __call__(self, symbols: Sequence[str], own_before: int | None) -> Mapping[str, Seed]:
        if own_before is None and not self._other_epochs:
            return {}
        # Rows of this very incarnation count for symbols that were let go, but none that comes
        # again: stored before a crash, it would hide the gap it showed.
        known = Known(self._epoch, -1 if own_before is None else own_before)
        deadline_s = self._lake.clock.monotonic_s() + self._lake.settings.iceberg.commit_retry_s
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                return self._read(symbols, known)
            except LakeError as exc:
                if self._lake.clock.monotonic_s() >= deadline_s:
                    raise
                log.warning("seed_retry", topic=self._topic.log, error=exc.message, **exc.details)
                self._wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _read(self, symbols: Sequence[str], known: Known) -> Mapping[str, Seed]:
        return self._seeds().seed_intervals(self._topic.exchange.upper(), symbols, known)

    def _seeds(self) -> LakeSeeds:
        pinned = self._lake.reader.current(self._topic.data_type)
        return LakeSeeds(self._lake.reader, pinned)


class LakeTextSeeder(LakeSeeder):
    """The same for ids that are no numbers; the scopes of `k2.pipeline.text_ids` are asked for."""

    def _read(self, symbols: Sequence[str], known: Known) -> Mapping[str, Seed]:
        return self._seeds().seed_scopes(self._topic.exchange.upper(), symbols, known)


class Lanes:
    """`ValidatorFactory` of a worker."""

    def __init__(
        self,
        settings: Settings,
        codecs: Codecs,
        lake: Lakehouse,
        epoch_of: Callable[[str], str],
        clock: Clock,
        *,
        first_pending: Callable[[TP], int | None],
    ) -> None:
        self._first_pending = first_pending
        self._settings = settings
        self._codecs = codecs
        self._lake = lake
        self._epoch_of = epoch_of
        self._clock = clock
        self._tiers: Mapping[str, Tiers] = load_tiers(settings.degradation.tiers_file)
        self._seeded: dict[str, bool] = {}

    def make(self, topic: MarketTopic, partition: int) -> Validator:
        epoch = self._epoch_of(topic.log)
        others = self._other_epochs(topic, epoch)
        self._seeded[topic.log] = others
        return Validator(
            topic,
            partition,
            epoch,
            codecs=LaneCodecs(
                self._codecs.of(topic.log),
                self._codecs.of(topic.gaps),
                self._codecs.of(topic.dlq),
            ),
            options=self._settings.validate_,
            clock=self._clock,
            max_batch_bytes=self._settings.kafka.max_batch_bytes,
            seed=LakeSeeder(self._lake, topic, epoch, other_epochs=others),
            seed_texts=LakeTextSeeder(self._lake, topic, epoch, other_epochs=others),
            # What instruments are is little, and everything else is read by it.
            tiers=None if topic.data_type == "reference_data" else self._tiers[topic.asset_class],
        )

    def may_block(self, validator: Validator) -> bool:
        may_ask = validator.continuity.may_ask or validator.texts.may_ask
        return may_ask or self._seeded[validator.topic.log]

    def stored_through(self, tp: TP) -> int:
        topic = parse(tp.topic)[0]
        vector = self._lake.pinned[topic.data_type].vector()
        stored = vector.get(Place(self._epoch_of(tp.topic), topic.validated, tp.partition))
        through = -1 if stored is None else stored.sequence
        # What was put off is not in the lake yet, whatever the position says.
        pending = self._first_pending(tp)
        return through if pending is None else min(through, pending - 1)

    def _other_epochs(self, topic: MarketTopic, epoch: str) -> bool:
        """True when the lake has rows of this log from another incarnation of it.

        The vector tells: every row came with a position under its own epoch.
        """
        vector = self._lake.pinned[topic.data_type].vector()
        names = (topic.validated, topic.deferred)
        return any(p.topic in names and p.epoch != epoch for p in vector.entries)
