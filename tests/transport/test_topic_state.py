"""What differs between a topic and its specification."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.settings import Kafka
from k2.transport.admin import TopicSpec
from k2.transport.topic_state import COMPARED, TopicState, differences, topic_config

KAFKA = Kafka(_env_file=None)
SPECS = st.builds(
    TopicSpec,
    st.just("t"),
    st.integers(1, 64),
    compacted=st.booleans(),
    retention_s=st.none() | st.floats(1, 1e8),
)


@given(SPECS)
def test_a_topic_as_specified_has_no_difference(spec: TopicSpec) -> None:
    state = TopicState(spec.partitions, topic_config(spec, KAFKA))
    assert differences(spec, state, KAFKA) == []


@given(SPECS, st.sampled_from(["partitions", *COMPARED]))
def test_each_change_is_told_alone(spec: TopicSpec, what: str) -> None:
    config, partitions = topic_config(spec, KAFKA), spec.partitions
    if what == "partitions":
        partitions += 1
    else:
        config[what] = "other"
    (one,) = differences(spec, TopicState(partitions, config), KAFKA)
    assert (one.topic, one.what) == ("t", what)
    assert one.wanted != one.found
    assert one.repairable == (what != "partitions")


def test_a_missing_topic_is_one_difference() -> None:
    (one,) = differences(TopicSpec("t", 3), None, KAFKA)
    assert (one.what, one.wanted, one.found) == ("topic", "3 partitions", None)


@pytest.mark.parametrize(
    ("spec", "policy", "retention"),
    [
        (TopicSpec("log", 1, retention_s=90 * 86_400), "delete", "7776000000"),
        (TopicSpec("table", 1, compacted=True), "compact", "-1"),
    ],
)
def test_logs_are_deleted_by_age_and_tables_compacted(
    spec: TopicSpec, policy: str, retention: str
) -> None:
    config = topic_config(spec, KAFKA)
    assert (config["cleanup.policy"], config["retention.ms"]) == (policy, retention)
