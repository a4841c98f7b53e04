"""Who decides where a consumer starts."""

import pytest
from faust.types import TP

from k2.errors import ConfigError, LogError, RetentionGapError
from k2.transport.positions import StartPositions, check_position

ONE, TWO, OTHER = TP("a", 0), TP("a", 1), TP("b", 0)


async def test_each_topic_is_asked_for_its_own_partitions():
    positions = StartPositions()
    asked = []

    async def resolver(tps):
        asked.append(tps)
        return {ONE: 7, OTHER: 99}

    positions.register("a", resolver)
    assert await positions.resolve({ONE, TWO, OTHER}) == {ONE: 7}
    assert asked == [frozenset({ONE, TWO})]
    assert "a" in positions
    assert "b" not in positions


async def test_a_topic_has_one_resolver():
    async def resolver(tps):
        return {}

    positions = StartPositions()
    positions.register("a", resolver)
    with pytest.raises(ConfigError, match="'a' has a start-position resolver"):
        positions.register("a", resolver)


async def test_the_commit_stays_at_or_below_the_ceiling():
    async def resolver(tps):
        return {}

    positions = StartPositions()
    ceilings = {ONE: 5}
    positions.register("a", resolver, commit_ceiling=ceilings.get)
    assert positions.ceiling(ONE, 9) == 5
    assert positions.ceiling(ONE, 3) == 3
    assert positions.ceiling(TWO, 9) is None
    assert positions.ceiling(OTHER, 9) == 9


@pytest.mark.parametrize("position", [10, 15, 20])
def test_a_position_the_log_can_serve_passes(position):
    check_position(ONE, position, earliest=10, end=20)


def test_a_position_below_retention_is_loud():
    with pytest.raises(
        RetentionGapError, match=r"a\[0\].*offset 3.*earliest offset is 10.*7 offsets"
    ):
        check_position(ONE, 3, earliest=10, end=20)


def test_a_position_beyond_the_end_is_loud():
    with pytest.raises(LogError, match=r"offset 21.*ends at 20"):
        check_position(ONE, 21, earliest=10, end=20)
