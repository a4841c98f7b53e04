"""A column is added, widened, renamed and dropped while the pipeline runs."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import faust
import pyarrow as pa
import pytest
from click.testing import CliRunner

from k2.cli.main import cli
from k2.clock import SYSTEM_CLOCK
from k2.codec.registry import FileRegistry
from k2.codecs import Codecs
from k2.settings import load_settings
from k2.steps.publish import Partitioner, Publisher
from k2.topics import BINANCE_TRADES, MARKET_TOPICS
from k2.transport.registry import registry
from tests.e2e.harness import Stack, catalog, gap_ranges, trade_ids
from tests.steps.parts import trade_rows

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(300)]

NEW = "NEWUSDT"


async def k2(data_dir: Path, *words: str) -> dict[str, Any]:
    """A command beside the running worker; its JSON."""
    environment = {"K2_DATA_DIR": str(data_dir)}
    done = await asyncio.to_thread(CliRunner().invoke, cli, [*words, "--json"], env=environment)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def write_grown(data_dir: Path, ids: range) -> None:
    """Trades of a producer that knows the new fields, in the embedded log; no worker may run."""
    app = faust.App("grown", broker=f"local://{data_dir / 'log'}", web_enabled=False)
    settings = load_settings()
    registry(app).kafka = settings.kafka
    codecs = Codecs.open(FileRegistry(data_dir / "registry"), MARKET_TOPICS)
    await app.maybe_start_producer()
    publisher = Publisher(
        BINANCE_TRADES,
        app.producer,
        codecs.grown[BINANCE_TRADES.subject],
        Partitioner(settings.kafka.partitions),
        SYSTEM_CLOCK,
        settings.kafka.max_batch_bytes // 2,
    )
    rows = trade_rows([(NEW, one) for one in ids], SYSTEM_CLOCK.now_us())
    rows = rows.append_column("fee", pa.array([f"{one}.25" for one in ids]))
    rows = rows.append_column("hops", pa.array([2**40 + one for one in ids]))
    await asyncio.gather(*publisher.publish(rows, "grown"))
    await app.producer.stop()
    await app.transport.close()


async def test_a_schema_grows_under_a_running_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    simulate = ("simulate", "--symbols", "BTCUSDT", "--rate", "200", "--first-id", "1")
    async with Stack(tmp_path) as stack:
        await stack.start_exchange(*simulate)
        await stack.start_worker()

        async def more_rows() -> None:
            """The pipeline goes on storing."""
            now = (await stack.client.status())["sink"]["tables"]["trades"]["rows"]
            await stack.until(
                "more trades are stored",
                lambda s: s["sink"]["tables"]["trades"]["rows"] > now,
            )

        await more_rows()
        before = catalog(data).load_table("market_data.trades").current_snapshot()
        assert before is not None
        for step in (
            ("--add", "venue_fee:decimal", "--doc", "what the venue takes"),
            ("--add", "hops:int"),
            ("--add", "scratch:string"),
            ("--widen", "hops:long"),
            ("--rename", "venue_fee:fee"),
            ("--drop", "scratch"),
        ):
            done = await k2(data, "schema", "evolve", "trades", *step)
            assert done["trades"]["table_changed"]
            await more_rows()
        checked = await k2(data, "schema", "check")
        assert [one["problems"] for one in checked.values()] == [[], []]
        await stack.stop_exchange()
        await stack.until("drained", lambda s: s["drained"])
        assert await stack.stop_worker() == 0
        ids = trade_ids(data)
        assert ids == list(range(ids[0], ids[0] + len(ids)))
        assert gap_ranges(data) == []

        monkeypatch.setenv("K2_DATA_DIR", str(data))
        await write_grown(data, range(1, 51))
        await stack.start_worker(K2_BINANCE_ENABLED="false")
        await stack.until("stored", lambda s: s["sink"]["tables"]["trades"]["rows"] == 50)
        counted = await stack.sql(
            f"select count(*) n, sum(fee) fees, max(hops) hops from trades where symbol = '{NEW}'"
        )
        (shown,) = counted
        assert (shown["n"], shown["hops"]) == (50, 2**40 + 50)
        assert Decimal(shown["fees"]) == sum(Decimal(f"{one}.25") for one in range(1, 51))
        assert await stack.stop_worker() == 0

    table = catalog(data).load_table("market_data.trades")
    wanted = ("symbol", "trade_id", "fee", "hops", "scratch")
    rows = table.scan(selected_fields=wanted).to_arrow().to_pylist()
    found = {int(row["trade_id"]): row for row in rows if row["symbol"] == NEW}
    assert {one: (row["fee"], row["hops"]) for one, row in found.items()} == {
        one: (Decimal(f"{one}.25"), 2**40 + one) for one in range(1, 51)
    }
    others = [row for row in rows if row["symbol"] != NEW]
    assert len(others) == len(ids)
    assert all(row["fee"] is row["hops"] is row["scratch"] is None for row in others)
    then = table.scan(snapshot_id=before.snapshot_id).to_arrow()
    assert "fee" not in then.column_names
    assert then.num_rows > 0
