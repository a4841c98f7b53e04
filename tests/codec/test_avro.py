"""The codec: pyruhvro and fastavro agree, and no bad value spoils its neighbours."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k2.codec.avro import Codec
from k2.codec.engines import FastEngine, Malformed, SlowEngine, _arrow_value
from k2.codec.registry import FileRegistry
from k2.codec.schemas import schema_text
from k2.codec.wire import DecodeReason, header
from k2.errors import RegistryUnavailableError, SchemaError, SchemaNotFoundError
from k2.records import WIRE
from tests.codec.records import RECORDS, recorded_trades, reference_encode

SUBJECT = "market.crypto.trades-value"
FAST_KINDS = ("trades", "quotes", "agg_trades", "reference_data", "gaps")
#: Ids whose bytes, read as a float, are NaN (quiet, signalling), denormal, infinite, -0.0.
AWKWARD_IDS = (1, 7, 0x0000C07F, 0x0100807F, 0x0000807F, 0x01000000, 0x7FFFFFFF, 0x00000080)


@pytest.fixture
def registry(tmp_path: Path) -> FileRegistry:
    return FileRegistry(tmp_path)


@pytest.fixture
def codec(registry: FileRegistry) -> Codec:
    return Codec.open(registry, SUBJECT, schema_text("trades"))


class NoRegistry:
    """Knows nothing, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def register(self, subject: str, schema_text: str) -> int:
        raise AssertionError

    def schema(self, schema_id: int) -> str:
        self.asked.append(schema_id)
        raise SchemaNotFoundError(f"no schema {schema_id}")

    def latest(self, subject: str) -> Any:
        raise AssertionError

    def check_compatible(self, subject: str, schema_text: str) -> list[str]:
        raise AssertionError


def as_batch(kind: str, records: list[dict[str, Any]]) -> pa.RecordBatch:
    fields = json.loads(schema_text(kind))["fields"]
    columns = [
        pa.array([_arrow_value(entry["type"], record[entry["name"]]) for record in records], type_)
        for entry, type_ in zip(fields, WIRE[kind].types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=WIRE[kind])


def trade_values(codec: Codec, count: int) -> list[bytes]:
    return [reference_encode("trades", row, codec.schema_id) for row in recorded_trades(count)]


@pytest.mark.parametrize("kind", FAST_KINDS)
@given(data=st.data(), schema_id=st.sampled_from(AWKWARD_IDS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_engines_read_and_write_the_same(
    kind: str, data: st.DataObject, schema_id: int
) -> None:
    records = data.draw(st.lists(RECORDS[kind], max_size=6))
    values = [reference_encode(kind, record, schema_id) for record in records]
    fast = FastEngine(schema_text(kind), schema_id)
    slow = SlowEngine(schema_text(kind), schema_id)
    batch = fast.read(values)
    assert batch.schema.equals(WIRE[kind])
    assert batch.equals(slow.read(values))
    assert batch.equals(as_batch(kind, records))
    assert fast.write(batch) == slow.write(batch) == values


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_dead_letters_keep_raw_bytes(data: st.DataObject) -> None:
    records = data.draw(st.lists(RECORDS["dlq"], max_size=4))
    engine = SlowEngine(schema_text("dlq"), 9)
    batch = as_batch("dlq", records)
    values = engine.write(batch)
    assert values == [reference_encode("dlq", record, 9) for record in records]
    assert engine.read(values).equals(batch)


@given(cut=st.integers(0, 6), length=st.integers(0, 6), data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_slice_encodes_its_own_rows(cut: int, length: int, data: st.DataObject) -> None:
    records = data.draw(st.lists(RECORDS["trades"], min_size=6, max_size=6))
    codec = Codec(NoRegistry(), schema_text("trades"), 5)
    values = [reference_encode("trades", record, 5) for record in records]
    batch = codec.decode(values).batch.slice(cut, length)
    assert codec.encode(batch) == values[cut : cut + length]


def test_recorded_trades_survive_the_round_trip(codec: Codec) -> None:
    values = trade_values(codec, 2_000)
    decoded = codec.decode_fast(values)
    assert decoded is not None
    assert decoded.rows.tolist() == list(range(2_000))
    assert codec.encode(decoded.batch) == values


def test_empty_input_gives_an_empty_batch(codec: Codec) -> None:
    decoded = codec.decode([])
    assert decoded.batch.num_rows == 0
    assert decoded.batch.schema.equals(WIRE["trades"])
    assert codec.encode(decoded.batch) == []


def test_each_bad_value_is_named_and_the_others_survive(codec: Codec) -> None:
    values: list[bytes | None] = [*trade_values(codec, 60)]
    good = list(values)
    sound = values[0]
    assert sound is not None
    enum_at = sound.index(b"BINANCE", 40) + len(b"BINANCE")
    bad: dict[int, tuple[bytes | None, DecodeReason]] = {
        3: (None, DecodeReason.NO_VALUE),
        4: (b"", DecodeReason.TOO_SHORT),
        5: (b"\0\0\0", DecodeReason.TOO_SHORT),
        6: (b'{"e":"trade"}', DecodeReason.BAD_MAGIC),
        7: (b"\1" + sound[1:], DecodeReason.BAD_MAGIC),
        8: (header(4_711) + sound[5:], DecodeReason.UNKNOWN_SCHEMA),
        9: (header(0) + sound[5:], DecodeReason.UNKNOWN_SCHEMA),
        10: (sound[:5], DecodeReason.MALFORMED),
        11: (sound[:-1], DecodeReason.MALFORMED),
        12: (sound.replace(b"BTCUSDT", b"BTC\xff\xfeDT"), DecodeReason.MALFORMED),
        13: (sound[:enum_at] + b"\x08" + sound[enum_at + 1 :], DecodeReason.MALFORMED),
        14: (sound + b"\0", DecodeReason.TRAILING_BYTES),
        15: (sound + sound, DecodeReason.TRAILING_BYTES),
        59: (sound[:100], DecodeReason.MALFORMED),
    }
    for row, (value, _) in bad.items():
        values[row] = value
    decoded = codec.decode(values)
    assert {entry.row: entry.reason for entry in decoded.bad} == {
        row: reason for row, (_, reason) in bad.items()
    }
    assert all(entry.detail for entry in decoded.bad)
    survivors = [row for row in range(60) if row not in bad]
    assert decoded.rows.tolist() == survivors
    assert codec.encode(decoded.batch) == [good[row] for row in survivors]


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_garbage_never_spoils_neighbours(data: st.DataObject) -> None:
    """Every value is decoded as fastavro does, or refused when fastavro refuses it."""
    codec = Codec(NoRegistry(), schema_text("gaps"), 3)
    slow = SlowEngine(schema_text("gaps"), 3)
    whole = RECORDS["gaps"].map(lambda record: reference_encode("gaps", record, 3))
    mutated = st.builds(
        lambda value, at, byte: value[: at % len(value)] + byte + value[at % len(value) + 1 :],
        whole,
        st.integers(0, 400),
        st.binary(max_size=3),
    )
    garbage = st.none() | st.binary(max_size=40) | st.binary(max_size=40).map(header(3).__add__)
    values = data.draw(st.lists(whole | mutated | garbage, max_size=12))
    decoded = codec.decode(values)
    kept = decoded.rows.tolist()
    assert sorted(kept + [entry.row for entry in decoded.bad]) == list(range(len(values)))
    for place, row in enumerate(kept):
        assert slow.read([values[row]]).equals(decoded.batch.slice(place, 1))
    for entry in decoded.bad:
        with pytest.raises(Malformed):
            slow.read([values[entry.row]])


@given(
    data=st.data(),
    spoilt=st.dictionaries(st.integers(0, 7), st.sampled_from(["symbol", "list", "key", "value"])),
)
@settings(max_examples=60, deadline=None)
def test_text_that_is_not_utf8_is_found_wherever_it_stands(
    data: st.DataObject, spoilt: dict[int, str]
) -> None:
    codec = Codec(NoRegistry(), schema_text("trades"), 5)
    records = data.draw(st.lists(RECORDS["trades"], min_size=8, max_size=8))
    marker = "\N{SNOWMAN}damaged"
    for row, place in spoilt.items():
        records[row] |= {
            "symbol": {"symbol": marker},
            "list": {"trade_conditions": ["x", marker]},
            "key": {"vendor_data": {"a": "b", marker: "c"}},
            "value": {"vendor_data": {"a": marker}},
        }[place]
    values = [reference_encode("trades", record, 5) for record in records]
    broken = [value.replace(marker.encode(), b"\xe2\x98\xffdamaged") for value in values]
    decoded = codec.decode(broken)
    assert sorted(spoilt) == [entry.row for entry in decoded.bad]
    assert {entry.reason for entry in decoded.bad} <= {DecodeReason.MALFORMED}
    assert codec.encode(decoded.batch) == [values[row] for row in decoded.rows]


def test_unusual_but_valid_encodings_are_read(codec: Codec) -> None:
    """A block of map entries with its size in front, as some writers do it: longer, yet sound."""
    [sound] = trade_values(codec, 1)
    record = recorded_trades(1)[0]
    record["vendor_data"] = {}
    plain = reference_encode("trades", record, codec.schema_id)
    # …union branch 1, then count -1, 4 bytes, "a" -> "b", end of map; is_backfill false.
    sized = plain[:-2] + b"\x01\x08\x02a\x02b\x00\x00"
    decoded = codec.decode([sound, sized, sound])
    assert decoded.bad == []
    assert decoded.batch.column("vendor_data").to_pylist()[1] == [("a", "b")]


def evolved(**extra: Any) -> str:
    """trade_v2 with one more field before the others' end."""
    schema = json.loads(schema_text("trades"))
    schema["fields"].append(extra)
    return json.dumps(schema)


def test_records_of_an_older_schema_get_the_new_fields_default(registry: FileRegistry) -> None:
    old = Codec.open(registry, SUBJECT, schema_text("trades"))
    newer = evolved(name="venue", type=["null", "string"], default=None)
    new = Codec.open(registry, SUBJECT, newer)
    before = trade_values(old, 10)
    batch = old.decode(before).batch
    with_venue = pa.RecordBatch.from_arrays(
        [*batch.columns, pa.array(["X"] * 10)], schema=new.schema
    )
    after = new.encode(with_venue)
    mixed = new.decode([*before[:5], *after[:5], *before[5:]])
    assert mixed.bad == []
    assert mixed.batch.column("venue").to_pylist() == [None] * 5 + ["X"] * 5 + [None] * 5
    expected = pa.array(np.r_[0:5, 0:5, 5:10])
    assert mixed.batch.drop_columns(["venue"]).equals(
        batch.take(expected).cast(mixed.batch.drop_columns(["venue"]).schema)
    )


def test_an_old_reader_drops_fields_it_does_not_know(registry: FileRegistry) -> None:
    old = Codec.open(registry, SUBJECT, schema_text("trades"))
    newer = evolved(name="venue", type=["null", "string"], default=None)
    new = Codec.open(registry, SUBJECT, newer)
    batch = old.decode(trade_values(old, 3)).batch
    wider = pa.RecordBatch.from_arrays([*batch.columns, pa.array(["X"] * 3)], schema=new.schema)
    assert old.decode(new.encode(wider)).batch.equals(batch)


def test_values_that_need_a_look_are_resolved_by_the_reference(registry: FileRegistry) -> None:
    """An enum symbol that became the default cannot be resolved by column."""
    old = Codec.open(registry, SUBJECT, schema_text("trades"))
    schema = json.loads(schema_text("trades"))
    side = next(field for field in schema["fields"] if field["name"] == "side")["type"]
    side["symbols"] = ["BUY", "UNKNOWN"]
    side["default"] = "UNKNOWN"
    new = Codec.open(registry, SUBJECT, json.dumps(schema))
    values = trade_values(old, 200)
    sides = old.decode(values).batch.column("side").to_pylist()
    assert set(sides) == {"BUY", "SELL"}
    read = new.decode([*values, b"\0"])
    assert read.batch.column("side").to_pylist() == [
        "BUY" if side == "BUY" else "UNKNOWN" for side in sides
    ]
    assert [entry.row for entry in read.bad] == [200]


def test_records_of_another_kind_are_refused(registry: FileRegistry) -> None:
    trades = Codec.open(registry, SUBJECT, schema_text("trades"))
    gaps = Codec.open(registry, "market.gaps-value", schema_text("gaps"))
    value = header(gaps.schema_id) + b"\0" * 20
    decoded = trades.decode([value])
    assert [entry.reason for entry in decoded.bad] == [DecodeReason.WRONG_SCHEMA]
    assert "Gap" in decoded.bad[0].detail


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def now_us(self) -> int:
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_the_registry_is_asked_once_about_an_unknown_id_and_again_later() -> None:
    registry, clock = NoRegistry(), ManualClock()
    codec = Codec(registry, schema_text("trades"), 5, clock=clock)
    stray = header(6) + b"x"
    codec.decode([stray] * 3)
    codec.decode([stray])
    assert registry.asked == [6]
    clock.now_s += 31
    codec.decode([stray])
    assert registry.asked == [6, 6]


def test_only_an_unknown_schema_is_asked_for() -> None:
    codec = Codec(NoRegistry(), schema_text("trades"), 5)
    assert not codec.may_ask([header(5) + b"x", None, b"", b"\x00\x00", header(5) + b"y"])
    assert codec.may_ask([header(5) + b"x", header(6) + b"y"])


def test_a_registry_that_is_down_makes_no_record_bad() -> None:
    class Down(NoRegistry):
        def schema(self, schema_id: int) -> str:
            raise RegistryUnavailableError("down")

    codec = Codec(Down(), schema_text("trades"), 5)
    with pytest.raises(RegistryUnavailableError):
        codec.decode([header(6) + b"x"])


def test_a_panic_in_the_decoder_is_a_refusal_and_other_exits_are_not(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Bytes make pyruhvro panic; types.is_fast keeps such schemas away from it.
    schema = '{"type":"record","name":"R","fields":[{"name":"a","type":"bytes"}]}'
    assert not FastEngine.reads(schema)
    engine = FastEngine(schema, 1)
    with pytest.raises(Malformed, match="panicked"):
        engine.read([header(1) + b"\x02a"])
    assert "panic" in capfd.readouterr().err

    def interrupted(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyruhvro.deserialize_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.read([b"x"])


def test_encode_refuses_what_the_encoder_would_falsify(codec: Codec) -> None:
    batch = codec.decode(trade_values(codec, 3)).batch
    place = batch.schema.get_field_index("price")
    nulls = batch.set_column(place, "price", pa.array(["1", None, "2"]))
    with pytest.raises(SchemaError, match="'price' has nulls"):
        codec.encode(nulls)
    conditions = batch.schema.get_field_index("trade_conditions")
    lists = batch.set_column(conditions, "trade_conditions", pa.array([["A"], [None], []]))
    with pytest.raises(SchemaError, match="'trade_conditions' has nulls"):
        codec.encode(lists)
    with pytest.raises(SchemaError, match="'price' is not string"):
        codec.encode(batch.set_column(place, "price", pa.array([[1], [2], [3]])))
    with pytest.raises(SchemaError, match="lacks price"):
        codec.encode(batch.drop_columns(["price"]))
    side = batch.schema.get_field_index("side")
    with pytest.raises(SchemaError, match="not encodable"):
        codec.encode(batch.set_column(side, "side", pa.array(["BUY", "HOLD", "SELL"])))


def test_encode_takes_columns_in_any_order_and_extra_ones(codec: Codec) -> None:
    values = trade_values(codec, 3)
    batch = codec.decode(values).batch
    shuffled = batch.select(list(reversed(batch.schema.names))).append_column(
        "extra", pa.array([1, 2, 3])
    )
    assert codec.encode(shuffled) == values


V1 = json.dumps(
    {
        "type": "record",
        "name": "Trade",
        "fields": [
            {"name": "symbol", "type": "string"},
            {
                "name": "price",
                "type": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 6},
            },
            {
                "name": "exchange_timestamp",
                "type": {"type": "long", "logicalType": "timestamp-millis"},
            },
            {"name": "tags", "type": {"type": "array", "items": {"type": "map", "values": "int"}}},
            {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}]},
        ],
    }
)


def test_schemas_with_decimals_go_through_the_reference(registry: FileRegistry) -> None:
    codec = Codec.open(registry, "v1", V1)
    batch = pa.RecordBatch.from_pylist(
        [
            {
                "symbol": "BHP",
                "price": Decimal("-36.120001"),
                "exchange_timestamp": -5,
                "tags": [[("a", 1)], []],
                "day": 3,
            },
            {
                "symbol": "",
                "price": Decimal("999999999999.999999"),
                "exchange_timestamp": 2**62,
                "tags": [],
                "day": None,
            },
        ],
        schema=codec.schema,
    )
    values = codec.encode(batch)
    assert codec.decode(values).batch.equals(batch)
    decoded = codec.decode([values[0], values[1][:-3], values[1], values[0] + b"x"])
    assert decoded.rows.tolist() == [0, 2]
    assert [entry.reason for entry in decoded.bad] == ["MALFORMED", "TRAILING_BYTES"]
    assert decoded.batch.equals(batch)
