"""The feeds of this platform, as configured, joined to where their records go."""

from __future__ import annotations

from collections.abc import Callable

from k2.settings import Settings
from k2.sources.exchanges import EXCHANGES
from k2.steps.dead_letters import DeadLetters
from k2.steps.publish import Publisher
from k2.steps.raw import RawFrames
from k2.steps.source import SourceFeed
from k2.topics import FEED_TOPICS, MarketTopic


def feeds_of(
    settings: Settings,
    publisher: Callable[[MarketTopic], Publisher],
    dead_letters: Callable[[MarketTopic], DeadLetters],
    raw: Callable[[MarketTopic], RawFrames],
) -> list[SourceFeed]:
    """One per exchange of `K2_EXCHANGES` that has a feed; tapes have none."""
    return [
        SourceFeed(
            EXCHANGES[name],
            getattr(settings, name),
            {
                topic.data_type: publisher(topic)
                for topic in (*FEED_TOPICS[name], *settings.more_topics(name))
            },
            # Frames that never became records are kept with the trades.
            dead_letters(FEED_TOPICS[name][0]),
            raw(FEED_TOPICS[name][0]) if getattr(settings, name).raw else None,
        )
        for name in dict.fromkeys(settings.core.exchanges)
        if name in FEED_TOPICS
    ]
