"""What statistics say of a row group is what decoding it gives."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2.lake.reader import LakeFile
from k2.lake.tables import TRADES
from k2.query.asked import RecordsQuery
from k2.query.bounds import Bounds
from k2.query.cold_rows import ColdRows
from k2.query.data_file import Footer
from k2.query.records import _Asked
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows


def _file(path: Path) -> LakeFile:
    return LakeFile(str(path), None, None, 0, 0, None, None, None, None, None, None)


def _written(path: Path, table: pa.Table, **options: Any) -> Footer:
    pq.write_table(table, path, store_schema=False, **options)
    return Footer.read(_file(path), TRADES.arrow_schema, "timestamp")


def _mixed(chance: random.Random, count: int) -> pa.Table:
    """Columns that change now and then, nulls among them where the table allows them."""
    names = sorted(chance.choice(("AUSDT", "BUSDT", "CUSDT")) for _ in range(count))
    times = [T0_US + chance.randrange(3) * 1_000 for _ in range(count)]
    made = rows(range(count), times, symbols=names)
    for name, values in (
        ("source_sequence", [chance.choice((7, 7, 7, None)) for _ in range(count)]),
        ("vendor_data", [None if at < count // 2 else "{}" for at in range(count)]),
        ("is_backfill", [at > count // 3 for at in range(count)]),
    ):
        at = made.schema.get_field_index(name)
        made = made.set_column(at, made.field(at), pa.array(values, made.field(at).type))
    return made


@pytest.mark.parametrize("statistics", [True, ["symbol", "is_backfill"], False])
def test_constants_are_the_values_of_the_columns(tmp_path: Path, statistics: Any) -> None:
    footer = _written(
        tmp_path / "mixed.parquet",
        _mixed(random.Random(3), 200),
        row_group_size=8,
        write_statistics=statistics,
    )
    found = set()
    for group in footer.groups:
        decoded = footer.rows(footer.open(), [group.index], TRADES.arrow_schema.names)
        constants = footer.constants(group.index)
        for name, value in constants.items():
            assert decoded[name].to_pylist() == [value] * group.rows
        if statistics is True:
            told = set(TRADES.arrow_schema.names) - {"trade_conditions"}
            same = {name for name in told if len(set(decoded[name].to_pylist())) == 1}
            # A column of nulls has no least value.
            assert constants.keys() == {name for name in same if decoded[name][0].is_valid}
        found |= constants.keys()
    assert bool(found) is bool(statistics)
    assert "trade_conditions" not in found


def test_a_column_that_may_have_nulls_is_no_constant(tmp_path: Path) -> None:
    count = 10
    made = rows(range(count), [T0_US] * count)
    at = made.schema.get_field_index("source_sequence")
    some = pa.array([7] * (count - 1) + [None], pa.int64())
    made = made.set_column(at, made.field(at), some)
    footer = _written(tmp_path / "nulls.parquet", made)
    assert "source_sequence" not in footer.constants(0)
    assert footer.constants(0)["exchange"] == "BINANCE"


def test_a_value_python_lacks_is_no_constant(tmp_path: Path) -> None:
    """A time after 9999 in a column only another writer has statistics of."""
    made = rows([0], [T0_US])
    at = made.schema.get_field_index("receive_timestamp")
    late = pa.array([2**62], pa.int64()).cast(made.field(at).type)
    footer = _written(tmp_path / "late.parquet", made.set_column(at, made.field(at), late))
    assert "receive_timestamp" not in footer.constants(0)
    (decoded,) = footer.rows(footer.open(), [0], ["receive_timestamp"]).columns
    assert decoded.cast(pa.int64()).to_pylist() == [2**62]


def test_only_columns_that_differ_are_decoded(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files as K2 writes them; what was looked at is not decoded again."""
    platform.commit(rows(range(50), [T0_US + at for at in range(50)]), place())
    platform.refresh()
    (file,) = platform.engine.pin("trades").snapshot.files
    decoded: list[list[str]] = []
    plain = Footer.rows

    def counted(footer: Footer, opened: Any, indexes: Any, names: list[str]) -> pa.Table:
        decoded.append(list(names))
        return plain(footer, opened, indexes, names)

    monkeypatch.setattr(Footer, "rows", counted)
    reader = ColdRows(TRADES.arrow_schema, "timestamp")
    asked = _Asked(RecordsQuery(symbols=frozenset(("BTCUSDT",))))
    looked = reader.look(reader.groups([file], asked), asked)
    taken = reader.take(looked, looked.places)
    assert decoded[0] == ["timestamp"]
    constant = {
        "symbol", "exchange", "asset_class", "currency", "side", "is_backfill", "log_epoch",
        "log_topic", "log_partition",
    }  # fmt: skip
    assert set(decoded[1]) == set(TRADES.arrow_schema.names) - constant - {"timestamp"}
    assert taken.equals(pq.read_table(file.path.removeprefix("file://")).cast(taken.schema))


def test_symbols_are_looked_for_in_their_own_bucket_only() -> None:
    names = frozenset(f"{letter}USDT" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    bounds = Bounds(names, 5, 9)
    parts = [bounds.of_bucket(bucket) for bucket in range(16)]
    assert frozenset().union(*(part.symbols or () for part in parts)) == names
    assert sum(len(part.symbols or ()) for part in parts) == len(names)
    assert all((part.start_us, part.end_us) == (5, 9) for part in parts)
    # Another partitioning, and no symbols: nothing can be left out.
    assert bounds.of_bucket(None) is bounds
    assert Bounds().of_bucket(3) == Bounds()
