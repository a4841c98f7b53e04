"""Batches that came together are judged as each would be alone."""

import threading
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from k2.transport.company import Companies
from tests.pipeline.test_validate import codecs, log_batch, trade_values, validator

__all__ = ["codecs"]


def told(outcome):
    """All of an outcome that can be compared."""
    outputs = [
        (out.topic, out.partition, out.keys, out.values, out.headers) for out in outcome.outputs
    ]
    return outputs, replace(outcome, outputs=[])


def in_company(batches):
    companies = Companies()
    for batch in batches:
        companies.add(batch)
    return [batch.company for batch in batches]


@settings(deadline=None)
@given(
    lanes=st.lists(
        st.lists(
            st.one_of(
                st.tuples(st.sampled_from(["BTCUSDT", "ETHUSDT"]), st.integers(1, 40)),
                st.sampled_from([b"", b"not Avro", None]),
            ),
            min_size=1,
            max_size=12,
        ),
        min_size=1,
        max_size=5,
    ),
    order=st.randoms(use_true_random=False),
)
def test_in_company_as_alone(codecs, lanes, order):
    def values(lane):
        return [
            trade_values(codecs, [record])[0] if isinstance(record, tuple) else record
            for record in lane
        ]

    encoded = [values(lane) for lane in lanes]
    alone = [validator(codecs).apply(log_batch(one)) for one in encoded]
    batches = [log_batch(one) for one in encoded]
    found = in_company(batches)
    assert [company is not None for company in found] == [None not in one for one in encoded]
    places = list(range(len(batches)))
    order.shuffle(places)
    found = {place: validator(codecs).apply(batches[place]) for place in places}
    assert [told(found[place]) for place in range(len(batches))] == [told(one) for one in alone]


def test_one_call_decodes_for_all(codecs, monkeypatch):
    calls = []
    decode = codecs["trades"].decode_fast
    monkeypatch.setattr(
        codecs["trades"], "decode_fast", lambda values: calls.append(len(values)) or decode(values)
    )
    batches = [
        log_batch(trade_values(codecs, [("BTCUSDT", 10 * n + i) for i in range(3)]))
        for n in range(4)
    ]
    in_company(batches)
    kept = [validator(codecs).apply(batch).counts.ok for batch in batches]
    assert (kept, calls) == ([3, 3, 3, 3], [12])


def test_a_batch_read_again_in_part_is_judged_by_itself(codecs):
    records = [("BTCUSDT", i) for i in range(6)]
    whole = trade_values(codecs, records)
    first, second = validator(codecs), validator(codecs)
    first.apply(log_batch(whole[:4]))
    second.apply(log_batch(whole[:4]))
    again, other = log_batch(whole), log_batch(whole)
    in_company([again, other])
    assert told(first.apply(again)) == told(second.apply(log_batch(whole)))


def test_large_batches_late_ones_and_those_without_values_stay_alone(codecs):
    value = trade_values(codecs, [("BTCUSDT", 1)])
    large, empty, small, late = (log_batch(v) for v in (value * 501, [None], value, value))
    companies = Companies()
    for batch in (large, empty, small):
        companies.add(batch)
    assert small.company.share(small, len, len) is None
    companies.add(late)
    assert (large.company, empty.company) == (None, None)
    assert late.company.share(late, len, len) is None


def test_a_company_has_a_limit(codecs):
    value = trade_values(codecs, [("BTCUSDT", 1)])
    first, second, third = in_company([log_batch(value * 400) for _ in range(3)])
    assert first is second is not third


def test_whoever_shares_at_once_waits_for_the_one_who_works(codecs):
    batches = [log_batch(trade_values(codecs, [("BTCUSDT", i)])) for i in range(4)]
    in_company(batches)
    company, calls = batches[0].company, []
    ready = threading.Barrier(len(batches))
    found = []

    def share(batch):
        ready.wait()
        found.append(company.share(batch, tuple, lambda values: calls.append(1) or tuple(values)))

    threads = [threading.Thread(target=share, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert sorted(start for _, start in found) == [0, 1, 2, 3]
