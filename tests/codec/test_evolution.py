import json

import pyarrow as pa
import pytest

from k2.codec.avro import Codec
from k2.codec.compat import incompatibilities
from k2.codec.evolution import Step, added_fields, evolved
from k2.codec.registry import FileRegistry
from k2.codec.schemas import schema_text
from k2.errors import SchemaError
from tests.steps.parts import trade_rows

OWN = schema_text("trades")


def after(*steps, text=OWN):
    for step in steps:
        grown = evolved(text, OWN, step)
        assert incompatibilities(grown, text) == [], "each step must be BACKWARD"
        text = grown
    return text


def names(text):
    return [field["name"] for field in added_fields(text, OWN)]


ADD = Step("add", "venue_fee", kind="decimal", doc="what the venue takes")


def test_a_field_is_added_widened_renamed_and_dropped():
    text = after(ADD, Step("add", "hops", kind="int"))
    assert names(text) == ["venue_fee", "hops"]
    text = after(
        Step("widen", "hops", kind="long"), Step("rename", "venue_fee", to="fee"), text=text
    )
    fee, hops = added_fields(text, OWN)
    assert (fee["name"], fee["aliases"], fee["doc"]) == ("fee", ["venue_fee"], ADD.doc)
    assert hops["type"] == ["null", "long"]
    text = after(Step("drop", "fee"), Step("drop", "hops"), text=text)
    assert json.loads(text) == json.loads(OWN)


@pytest.mark.parametrize(
    "step", [ADD, Step("drop", "venue_fee"), Step("rename", "venue_fee", to="fee")]
)
def test_a_step_may_be_repeated(step):
    text = after(ADD, *([step] if step is not ADD else []))
    assert evolved(text, OWN, step) == text


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step("add", "price", kind="string"), "'price' is K2's own"),
        (Step("drop", "vendor_data"), "'vendor_data' is K2's own"),
        (Step("rename", "price", to="px"), "'price' is K2's own"),
        (Step("rename", "venue_fee", to="price"), "'price' is K2's own"),
        (Step("add", "venue_fee", kind="int"), "is there already"),
        (Step("widen", "venue_fee", kind="long"), "cannot be widened from string to long"),
        (Step("widen", "hops", kind="long"), "there is no field 'hops'"),
    ],
)
def test_what_breaks_readers_is_refused(step, words):
    with pytest.raises(SchemaError, match=words):
        evolved(after(ADD), OWN, step)


def test_another_schema_is_not_ours_grown():
    document = json.loads(OWN)
    document["fields"] = document["fields"][1:]
    assert added_fields(json.dumps(document), OWN) is None


def test_old_readers_read_new_records_and_new_readers_old_ones(tmp_path):
    registry = FileRegistry(tmp_path)
    old = Codec.open(registry, "s", OWN)
    text = after(ADD)
    new = Codec.open(registry, "s", text)
    rows = trade_rows([("BTCUSDT", 1), ("BTCUSDT", 2)], 1_723_161_500_000_000)
    fees = pa.array(["0.25", None])
    grown = pa.RecordBatch.from_arrays([*rows.columns, fees], [*rows.schema.names, "venue_fee"])
    read = old.decode(new.encode(grown))
    assert read.bad == []
    assert read.batch.equals(old.decode(old.encode(rows)).batch)
    back = new.decode(old.encode(rows))
    assert back.batch.column("venue_fee").to_pylist() == [None, None]
    assert new.decode(new.encode(grown)).batch.column("venue_fee").to_pylist() == ["0.25", None]
    # A reader of the renamed field finds the value under its old name.
    later = Codec.open(registry, "s", after(Step("rename", "venue_fee", to="fee"), text=text))
    assert later.decode(new.encode(grown)).batch.column("fee").to_pylist() == ["0.25", None]
