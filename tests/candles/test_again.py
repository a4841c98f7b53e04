"""Trades are corrected by hand: their candles follow, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from pyiceberg.catalog import Catalog

from k2.candles.again import fold_again
from k2.candles.rebuild import compare, pair
from k2.candles.versions import lake_rows
from k2.cli.main import cli
from k2.lake.tables import CANDLES
from k2.lake.writer import LakeWriter
from k2.maintenance.correct import Correction, Corrector
from tests.candles import plain
from tests.candles.lakes import CandleLake
from tests.candles.test_writer import trades
from tests.lake.conftest import catalog, lake_settings  # noqa: F401 - fixtures


@pytest.fixture
def lake(catalog: Catalog) -> Iterator[CandleLake]:  # noqa: F811
    made = CandleLake(catalog)
    for first in range(0, 60, 20):
        made.add(trades(first, 20))
    yield made
    made.close()


def ids(lake: CandleLake, *sequences: int) -> list[str]:
    rows = pa.concat_tables(lake.all)
    found = rows.filter(pc.is_in(rows["platform_sequence"], pa.array(sequences)))
    return list(found["message_id"].to_pylist())


def corrected(lake: CandleLake, gone: int, changed: int, price: Decimal) -> None:
    """What the test expects of the trades from now on."""
    rows = pa.concat_tables(lake.all).to_pylist()
    rows = [row for row in rows if row["platform_sequence"] != gone]
    for row in rows:
        if row["platform_sequence"] == changed:
            row["price"] = price
    lake.all = [pa.Table.from_pylist(rows, lake.all[0].schema)]


def shown(lake: CandleLake) -> dict:
    return plain.table(lake_rows(lake.stored(), 0))


def different(lake: CandleLake) -> int:
    return compare(lake.reader, pair(lake.reader), frozenset()).different


def test_candles_of_corrected_trades_are_made_anew(lake: CandleLake) -> None:
    (gone, changed), before = ids(lake, 0, 31), shown(lake)
    asked = [Correction(gone), Correction(changed, {"price": "250.5"})]
    done = Corrector(lake.catalog).run(asked, "busted")
    assert shown(lake) == before
    writer = LakeWriter(lake.catalog, CANDLES)
    again = fold_again(lake.reader, writer, done.rows, frozenset())
    writer.close()
    corrected(lake, 0, 31, Decimal("250.5"))
    assert again.left == ""
    assert again.windows > 0
    assert shown(lake) == lake.expected() != before
    assert different(lake) == 0
    # The worker that remembered the old ones goes on from the new ones.
    lake.add(trades(60, 20))
    assert shown(lake) == lake.expected()


def test_candles_that_have_not_come_so_far_are_left_and_told(lake: CandleLake) -> None:
    lake.add(trades(60, 20), [lake.trades])
    done = Corrector(lake.catalog).run([Correction(ids(lake, 70)[0])], "busted")
    waited: list[float] = []
    again = fold_again(
        lake.reader, lake.candles._writer, done.rows, frozenset(), wait=waited.append, tries=3
    )
    assert (again.windows, len(waited)) == (0, 2)
    assert "have not got all of these trades" in again.left


def test_the_command_tells_and_nothing_is_left_to_rebuild(lake: CandleLake) -> None:
    (one,) = ids(lake, 31)
    words = ["correct", "replace", one, "--price", "99999", "--reason", "fat finger", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["candles"]["windows"] > 0
    assert told["candles"]["left"] == ""
    highest = max(row["high"] for row in lake.stored().to_pylist())
    assert highest == Decimal(99999)
    assert CliRunner().invoke(cli, ["candles", "rebuild"]).exit_code == 0
