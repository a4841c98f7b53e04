"""User SQL: what is refused, what runs, and exact candles."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from decimal import Decimal

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.errors import InvalidParameter, QueryError, QueryTimeout
from k2.query.asked import RecordsQuery
from k2.query.bounds import Bounds
from k2.query.prune import bounds_by_view, evaluator
from k2.query.sql import check_sql
from tests import data
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows, upto

REFUSED = [
    "",
    "   ",
    "-- nothing",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE trades",
    "DROP VIEW trades",
    "INSERT INTO trades SELECT * FROM trades",
    "CREATE TABLE x AS SELECT 1",
    "UPDATE trades SET price = 0",
    "DELETE FROM trades",
    "COPY trades TO '/tmp/out.csv'",
    "COPY (SELECT 1) TO '/tmp/out.csv'",
    "EXPORT DATABASE '/tmp/x'",
    "ATTACH '/tmp/x.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 64",
    "RESET ALL",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "EXPLAIN SELECT 1",
    "SUMMARIZE trades",
    "SHOW TABLES",
    "PREPARE p AS SELECT 1",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "SELECT 1 INTO x",
    "WITH x AS (DELETE FROM trades RETURNING *) SELECT * FROM x",
    "SELECT * FROM 'file.parquet'",
    'SELECT * FROM "/etc/passwd"',
    "FROM 'http://127.0.0.1/x.parquet'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_parquet('x.parquet')",
    "SELECT * FROM parquet_scan('x.parquet')",
    "SELECT * FROM read_json_auto('x.json')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM glob('/**')",
    "SELECT * FROM iceberg_scan('/x')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM pragma_table_info('trades')",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('trades')",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM hot_0",
    "SELECT * FROM memory.main.trades",
    "SELECT * FROM other.trades",
    "SELECT * FROM trades AT (VERSION => 1)",
    "SELECT getenv('HOME')",
    "SELECT current_setting('s3_secret_access_key')",
    "SELECT getvariable('x')",
    "SELECT nextval('s')",
    "SELECT main.current_setting('threads')",
    "SELECT repeat('x', 1000000000)",
    "SELECT lpad('x', 1000000000, 'y')",
    "SELECT range(1000000000)",
    "SELECT sleep_ms(1000)",
    "SELECT write_log('x')",
    "SELECT json_serialize_sql('SELECT 1')",
    "SELECT $1",
    "SELECT ?",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT 1 ORDER BY (SELECT 1 FROM 'x.csv')",
    "SELECT 1 LIMIT (SELECT 1 FROM 'x.csv')",
    "SELECT 1 FROM trades JOIN 'x.csv' ON true",
    "SELECT count(*) OVER (ORDER BY (FROM 'x.csv')) FROM trades",
    "SELECT CASE WHEN (SELECT 1 FROM sqlite_master) THEN 1 END",
    "VALUES ((SELECT 1 FROM 'x.csv'))",
    "FROM (FROM 'x.json')",
    "SELECT * FROM trades WHERE EXISTS (FROM 'x.csv')",
    # A CTE lends its name only where it is visible.
    "SELECT * FROM (WITH duckdb_tables AS (SELECT 1) SELECT 1), duckdb_tables",
    "WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a",
    "WITH sqlite_master AS (SELECT * FROM sqlite_master) SELECT * FROM sqlite_master",
    "SELECT * FROM trades UNION ALL SELECT * FROM 'x.csv'",
    "SELECT unnest((SELECT list(x) FROM 'x.csv' t(x)))",
    "SELECT list_transform([1], lambda x: (SELECT 1 FROM 'x.csv'))",
    "SELECT 1 FROM trades WHERE price > ALL (SELECT 1 FROM 'x.csv')",
    "/* ' */ SELECT * FROM 'x.csv' -- '",
    "SELECT * FROM trades, LATERAL (SELECT * FROM 'x.csv')",
    "UNPIVOT trades ON price",
    "\x00SELECT 1",
    "SELECT " + "1," * 20_000 + "1",
]

ACCEPTED = [
    "SELECT 1",
    "VALUES (1, 2)",
    "FROM trades",
    "FROM range(3)",
    "SELECT * FROM market_data.trades t JOIN market_data.quotes q USING (symbol)",
    "SELECT symbol, count(*) FROM trades GROUP BY ALL HAVING count(*) > 0 ORDER BY ALL",
    "WITH a AS (FROM trades), b AS (FROM a) SELECT * FROM b",
    "WITH RECURSIVE x AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM x WHERE i < 3) FROM x",
    "WITH trades AS (SELECT 1 AS i) SELECT i FROM trades",
    "SELECT lag(price) OVER (PARTITION BY symbol ORDER BY timestamp) FROM trades",
    "FROM trades t ASOF JOIN quotes q ON t.symbol = q.symbol AND t.timestamp >= q.timestamp",
    "SELECT DISTINCT ON (symbol) * FROM trades ORDER BY symbol, timestamp DESC",
    "SELECT [x + 1 for x in [1, 2]], {'a': 1}, MAP {1: 2}, list_transform([1], lambda x: x * 2)",
    "SELECT extract(hour FROM timestamp), timestamp AT TIME ZONE 'UTC' FROM trades",
    "SELECT json_extract(vendor_data, '$.m') FROM trades",
    "SELECT symbol FROM trades UNION SELECT symbol FROM quotes EXCEPT SELECT 'X'",
    "SELECT quantile_cont(price, 0.5) FILTER (WHERE side = 'BUY') FROM trades",
    "SELECT * EXCLUDE (price) REPLACE (upper(symbol) AS symbol) FROM trades",
    "SELECT exchange_timestamp_ms, exchange_date, side FROM market_data WHERE quantity > 0.1",
    "SELECT symbol, expected, received FROM gaps WHERE event = 'opened'",
    "SELECT 'it''s -- ; DROP' AS \"a;b\" -- done",
    "SELECT vwap(price, quantity) FROM trades",
]


@pytest.mark.parametrize("text", REFUSED)
async def test_refused(platform: Platform, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        await platform.engine.sql(text, limit=10)
    assert caught.value.details["parameter"] == "sql"


@pytest.mark.parametrize("text", ACCEPTED)
async def test_accepted(platform: Platform, text: str) -> None:
    platform.commit(rows(range(4), [T0_US + i for i in range(4)], vendor_data='{"m":1}'), place())
    platform.refresh()
    answer = await platform.engine.sql(text, limit=10)
    assert answer.rows.num_columns > 0


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "COPY (SELECT 1) TO '/tmp/k2-must-not-exist.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH '/tmp/k2-must-not-exist.db'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "LOAD httpfs",
        "INSTALL httpfs",
    ],
)
def test_the_database_is_closed_even_without_the_check(platform: Platform, text: str) -> None:
    with pytest.raises(duckdb.Error):
        platform.database.cursor().execute(text)


def test_python_variables_are_no_tables(platform: Platform) -> None:
    secret = rows([1], [T0_US])
    with pytest.raises(duckdb.CatalogException):
        platform.database.cursor().execute("SELECT * FROM secret")
    assert secret.num_rows == 1


_PIECES = st.sampled_from(
    [*"'\"()[]{};,.*$?#:-/ \n", "--", "/*", "*/", "$$", "SELECT ", "FROM ", "WITH x AS ", "trades",
     "'f.csv'", '"f.csv"', "read_csv", "read_text", "x", "UNION ALL ", "JOIN ", "VALUES ", "1",
     "COPY ", "TO ", "duckdb_settings()", "getenv", "LATERAL ", "WHERE ", "EXISTS ", "é", "\u212a"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(_PIECES, max_size=25).map("".join))
def test_whatever_passes_reads_nothing_but_views(text: str) -> None:
    connection = duckdb.connect(":memory:")
    for view in ("trades", "quotes", "gaps", "market_data"):
        connection.execute(f"CREATE VIEW {view} AS SELECT 1 AS x")
    try:
        checked = check_sql(connection, text)
    except InvalidParameter:
        return
    # DuckDB's own opinion of what the accepted text reads.
    names = connection.get_table_names(checked.text)
    assert names <= {"trades", "quotes", "gaps", "market_data", "x"}


PRUNED = {
    "SELECT * FROM trades WHERE symbol = 'A'": ({"A"}, None, None),
    "SELECT * FROM trades t WHERE t.symbol IN ('A', 'B')": ({"A", "B"}, None, None),
    "SELECT * FROM trades WHERE symbol = 'A' AND timestamp >= '1970-01-02'": (
        {"A"}, 86_400_000_000 - 1, None,
    ),
    "SELECT * FROM trades WHERE timestamp < TIMESTAMPTZ '1970-01-02 00:00:00+00'": (
        None, None, 86_400_000_002,
    ),
    "SELECT * FROM trades WHERE symbol = 'A' OR symbol = 'B'": (None, None, None),
    "SELECT * FROM trades WHERE NOT symbol = 'A'": (None, None, None),
    "SELECT * FROM trades WHERE symbol = 'A' UNION ALL FROM trades": (None, None, None),
    "SELECT * FROM trades WHERE symbol='A' UNION SELECT * FROM trades WHERE symbol='B'": (
        {"A", "B"}, None, None,
    ),
    "SELECT 'Z' AS symbol FROM trades WHERE symbol = 'A'": (None, None, None),
    "SELECT * FROM trades t(a, b, symbol) WHERE symbol = 'A'": (None, None, None),
    "SELECT (SELECT max(price) FROM trades t WHERE q.symbol = 'A') FROM quotes q": (
        None, None, None,
    ),
    "SELECT * FROM trades, quotes WHERE trades.symbol = 'A'": (None, None, None),
    "SELECT * FROM trades WHERE timestamp > now()": (None, None, None),
    "SELECT * FROM trades WHERE timestamp > 'garbage'": (None, None, None),
    "SELECT * FROM trades WHERE upper(symbol) = 'A'": (None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("text", PRUNED)
def test_what_a_query_can_see(text: str) -> None:
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    checked = check_sql(connection, text)
    symbols, start, end = PRUNED[text]
    want = Bounds(None if symbols is None else frozenset(symbols), start, end)
    assert bounds_by_view(checked.tree, evaluator(connection))["trades"] == want


async def test_pruning_never_changes_an_answer(platform: Platform) -> None:
    for day in range(3):
        ids = range(day * 20, day * 20 + 20)
        names = [f"S{i % 5}" for i in ids]
        times = [T0_US + day * 86_400_000_000 + i * 1_000 for i in ids]
        platform.commit(rows(ids, times, symbols=names), place())
    platform.refresh()
    for where in (
        "symbol = 'S1'",
        "symbol IN ('S1', 'S2') AND timestamp >= '2024-08-10'",
        "timestamp BETWEEN '2024-08-08' AND '2024-08-09 23:58:20.025'",
        "timestamp = TIMESTAMPTZ '2024-08-09 23:58:20.025Z'",
    ):
        plain = f"SELECT count(*), sum(platform_sequence) FROM trades WHERE {where}"
        opaque = f"SELECT count(*), sum(platform_sequence) FROM trades WHERE ({where}) IS TRUE"
        got = await platform.engine.sql(plain, limit=1)
        want = await platform.engine.sql(opaque, limit=1)
        assert got.rows.to_pylist() == want.rows.to_pylist()
        assert got.rows[0][0].as_py() > 0


async def test_hot_and_cold_in_sql(platform: Platform) -> None:
    platform.commit(rows(range(10), [T0_US] * 10), place())
    platform.refresh()
    platform.tails["trades"].start(place(), 9)
    platform.produce(rows(range(10, 15), [T0_US] * 5), place())
    for view in ("trades", "market_data", "market_data.trades"):
        answer = await platform.engine.sql(f"SELECT count(*) AS n FROM {view}", limit=10)
        assert answer.rows.to_pylist() == [{"n": 15}]
    assert answer.as_of["trades"]["hot_rows"] == 5


async def test_a_table_as_of_a_moment(platform: Platform) -> None:
    for step in range(3):
        ids = range(step * 10, step * 10 + 10)
        platform.commit(rows(ids, [T0_US] * 10, symbols=["A", "B"] * 5), place())
    platform.refresh()
    newest, middle, _ = await platform.engine.history("trades", 3)
    at = dt.datetime.fromtimestamp(middle.timestamp_ms / 1_000, dt.UTC).isoformat()
    clause = f"FOR SYSTEM_TIME AS OF TIMESTAMP '{at}'"
    for text, want in {
        f"SELECT count(*) AS n FROM trades {clause}": 20,
        f"SELECT count(*) AS n FROM market_data.trades\n for system_time as of '{at}' t": 20,
        f"SELECT count(trades.price) AS n FROM trades {clause} WHERE trades.symbol = 'A'": 10,
        f"SELECT count(*) AS n FROM trades FOR SYSTEM_VERSION AS OF {newest.snapshot_id}": 30,
        f"SELECT count(*) - (SELECT count(*) FROM trades {clause}) AS n FROM trades": 10,
        f"SELECT count(*) AS n FROM market_data {clause} AS m WHERE m.symbol = 'B'": 10,
        "SELECT count(*) AS n FROM trades WHERE symbol <> 'x FOR SYSTEM_TIME AS OF 1'": 30,
    }.items():
        answer = await platform.engine.sql(text, limit=1)
        assert answer.rows.to_pylist() == [{"n": want}], text


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM trades FOR SYSTEM_TIME AS OF 'yesterday'",
        "SELECT * FROM trades FOR SYSTEM_TIME AS OF now()",
        "SELECT * FROM trades FOR SYSTEM_VERSION AS OF 'x'",
        "SELECT * FROM trades FOR SYSTEM_TIME AS OF",
        "SELECT * FROM FOR SYSTEM_TIME AS OF '2024-01-01'",
        "SELECT * FROM pg_tables FOR SYSTEM_TIME AS OF '2024-01-01'",
        "SELECT * FROM other.trades FOR SYSTEM_TIME AS OF '2024-01-01'",
        "SELECT * FROM k2_as_of_0, trades FOR SYSTEM_TIME AS OF '2024-01-01'",
        "SELECT 1 FOR SYSTEM_TIME AS OF '2024-01-01'",
    ],
)
def test_refused_moments(text: str) -> None:
    with pytest.raises(InvalidParameter):
        check_sql(duckdb.connect(":memory:"), text)


async def test_the_row_limit_cuts_and_says_so(platform: Platform) -> None:
    answer = await platform.engine.sql("SELECT * FROM range(50000) ORDER BY 1", limit=100)
    assert (answer.rows.num_rows, answer.truncated) == (100, True)
    answer = await platform.engine.sql("SELECT * FROM range(100)", limit=100)
    assert (answer.rows.num_rows, answer.truncated) == (100, False)


@pytest.mark.parametrize(
    "text",
    ["SELECT nope FROM trades", "SELECT CAST('x' AS INTEGER)", "SELECT sum('a') FROM trades",
     "SELECT CAST(CASE WHEN i = 200000 THEN 'x' ELSE '1' END AS INT) FROM range(300000) t(i)"],
)  # fmt: skip
async def test_a_query_that_fails_says_why(platform: Platform, text: str) -> None:
    with pytest.raises(InvalidParameter, match="Error"):
        await platform.engine.sql(text, limit=1_000_000)


async def test_memory_is_bounded(platform: Platform) -> None:
    with pytest.raises(QueryError, match="memory"):
        await platform.engine.sql(
            "SELECT count(DISTINCT (i, hash(i))) FROM range(100000000) t(i)", limit=1
        )


async def test_the_deadline_interrupts(platform: Platform) -> None:
    engine = platform.make_engine(timeout_s=1.0, pool_size=1)
    endless = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range < b.range"
    with pytest.raises(QueryTimeout):
        await engine.sql(endless, limit=1)
    # With a single slot this runs only because the query really ended.
    answer = await engine.sql("SELECT 1 AS one", limit=1)
    assert answer.rows.to_pylist() == [{"one": 1}]
    engine.close()


async def test_snapshots_with_delete_files_go_through_iceberg_scan(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.commit(rows(range(10), [T0_US + i for i in range(10)]), place())
    table = platform.tables["trades"]
    monkeypatch.setattr(table._reader, "has_deletes", lambda pinned: True)
    platform.refresh()
    assert table.snapshots()[0].metadata_location is not None
    platform.database.close()
    platform.database = platform.open_database(iceberg=True)
    engine = platform.make_engine()
    answer = await engine.sql("SELECT count(*) AS n, sum(price) AS p FROM trades", limit=1)
    assert answer.rows.to_pylist() == [{"n": 10, "p": Decimal("11.2500000000")}]
    found = await engine.records("trades", RecordsQuery(limit=4))
    assert found.rows["platform_sequence"].to_pylist() == [9, 8, 7, 6]
    engine.close()


def _recorded_trades() -> list[dict]:
    data.require(data.BTC_0808, data.BTC_0809)
    found = []
    for path in (data.BTC_0808, data.BTC_0809):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                if "@trade" in line:
                    frame = json.loads(line[line.index("{") :])
                    found.append(frame["data"])
    return found


CANDLES = """
SELECT epoch_ms(date_trunc('minute', timestamp)) AS window_start_ms,
       arg_min(price, (timestamp, platform_sequence)) AS open,
       max(price) AS high, min(price) AS low,
       arg_max(price, (timestamp, platform_sequence)) AS close,
       sum(quantity) AS volume, vwap(price, quantity) AS vwap, count(*) AS trade_count
FROM trades WHERE symbol = 'BTCUSDT' GROUP BY ALL ORDER BY 1
"""


async def test_candles_of_recorded_trades_equal_the_oracle_to_the_last_digit(
    platform: Platform,
) -> None:
    frames = _recorded_trades()
    assert len(frames) == data.TRADES
    table = rows(
        range(len(frames)),
        [frame["T"] * 1_000 for frame in frames],
        prices=[Decimal(frame["p"]) for frame in frames],
        quantities=[Decimal(frame["q"]) for frame in frames],
    )
    half = len(frames) // 2
    platform.commit(table.slice(0, half), place())
    platform.refresh()
    platform.tails["trades"].start(place(), upto(half - 1).sequence)
    platform.produce(table.slice(half), place())
    oracle = data.btc_oracle()
    answer = await platform.engine.sql(CANDLES, limit=1_000)
    assert len(oracle["candles_1m"]) == answer.rows.num_rows
    for want, got in zip(oracle["candles_1m"], answer.rows.to_pylist(), strict=True):
        for name, value in want.items():
            assert got[name] == (Decimal(value) if isinstance(value, str) else value), name
    total = await platform.engine.sql(
        "SELECT sum(quantity) AS volume, sum(price * quantity) AS notional FROM trades", limit=1
    )
    assert total.rows.to_pylist() == [
        {"volume": Decimal(oracle["volume"]), "notional": Decimal(oracle["notional"])}
    ]
