"""K2's compression gives what every reader of Kafka's format expects."""

import random

import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from k2.transport.encode import Lz4BatchBuilder, compress_lz4
from k2.transport.local import format as local


def build(values, codec=0):
    builder = DefaultRecordBatchBuilder(2, codec, 0, 7, 1, 40, 1 << 30)
    for row, value in enumerate(values):
        builder.append(row, 1_000 + row, b"k", value, [("h", b"v")] if row == 0 else [])
    return builder.build()


def read(raw):
    batch = DefaultRecordBatch(bytes(raw))
    assert batch.validate_crc()
    state = (batch.producer_id, batch.producer_epoch, batch.base_sequence)
    return state, [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in batch]


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=50))
def test_the_records_are_the_same(values):
    raw = build(values)
    sealed = compress_lz4(bytearray(raw))
    assert len(sealed) <= len(raw)
    assert read(sealed) == read(raw)


def test_text_gets_smaller_and_says_so():
    raw = build([b"BINANCE:BTCUSDT:%d" % n for n in range(1_000)])
    sealed = compress_lz4(bytearray(raw))
    assert len(sealed) < len(raw) / 2
    assert DefaultRecordBatch(bytes(sealed)).compression_type == DefaultRecordBatch.CODEC_LZ4


def test_noise_stays_as_it_is():
    raw = build([random.Random(1).randbytes(5_000)])
    assert compress_lz4(bytearray(raw)) == raw


def test_a_builder_is_built_once_with_the_senders_state():
    builder = Lz4BatchBuilder(1 << 20)
    for n in range(100):
        builder.append(timestamp=n, key=None, value=b"value %d" % n)
    builder._set_producer_state(9, 2, 500)
    raw = builder._build()
    assert builder._build() is raw
    assert builder.size() == len(raw)
    state, records = read(raw)
    assert state == (9, 2, 500)
    assert [value for _, _, _, value, _ in records] == [b"value %d" % n for n in range(100)]


@pytest.mark.parametrize("count", [1, 20, 3_000])
def test_the_embedded_log_writes_batches_as_the_producer_does(count: int) -> None:
    values: list[bytes | None] = [f"trade {n} of BTCUSDT".encode() * 3 for n in range(count)]
    keys: list[bytes | None] = [b"BTCUSDT"] * count
    headers = (("k2-cover", b"c" * 40),)
    batch = local.encode(values, keys, range(count), headers)
    plain = local.encode(values, keys, range(count), headers, codec="none")
    header = local.parse_header(batch, 0)
    assert header is not None
    assert (header.size, header.records, header.next_offset) == (len(batch), count, count)
    assert local.crc_is_valid(batch)
    assert list(local.records_of(batch, 0)) == list(local.records_of(plain, 0))
    small = count == 1  # a codec would cost more than it saves
    assert DefaultRecordBatch(bytes(batch)).compression_type == (0 if small else 3)
    assert len(batch) == len(plain) if small else len(batch) < len(plain) / 2
