import json
import os
from decimal import Decimal

import pytest
from click.testing import CliRunner

from k2.cli.main import cli
from k2.errors import LakeError, SupersededError
from k2.lake.history import vector_at
from k2.lake.reader import LakeReader
from k2.lake.seed import Known, LakeSeeds
from k2.lake.tables import CORRECTIONS, TRADES
from k2.lake.vector import Vector
from k2.maintenance import correct
from k2.maintenance.compact import Compactor
from k2.maintenance.correct import Correction, Corrector
from k2.maintenance.plan import CompactionPolicy
from k2.maintenance.refs import due_tags
from tests.lake.rows import place, upto
from tests.maintenance.lakes import fill, live_files, rows_by_duckdb, rows_by_pyiceberg, stored

SYMBOLS = ("BTCUSDT", "ETHUSDT", "PEPEUSDT")
DAY_MS = 86_400_000


def filled(catalog, commits=3):
    end = fill(catalog, commits, symbols=SYMBOLS)
    return end, {row["platform_sequence"]: row for row in rows_by_pyiceberg(catalog)}


def corrector(catalog, **options):
    return Corrector(catalog, wait=lambda _: None, **options)


def head(catalog):
    table = catalog.load_table(TRADES.identifier)
    return table.metadata, table.current_snapshot()


def notes(catalog):
    scan = catalog.load_table(CORRECTIONS.identifier).scan()
    return {row["message_id"]: row for row in scan.to_arrow().to_pylist()}


def test_trades_are_cancelled_and_replaced_in_one_snapshot(catalog):
    end, rows = filled(catalog)
    gone, changed = rows[7]["message_id"], rows[60]["message_id"]
    asked = [Correction(gone), Correction(changed, {"price": "12.5", "side": "SELL"})]
    done = corrector(catalog).run(asked, "busted by the venue")
    metadata, snapshot = head(catalog)
    assert str(snapshot.snapshot_id) == done.snapshot
    expected = {**rows, 60: {**rows[60], "price": Decimal("12.5"), "side": "SELL"}}
    del expected[7]
    found = {row["platform_sequence"]: row for row in rows_by_pyiceberg(catalog)}
    assert found == expected
    assert [row[0] for row in rows_by_duckdb(catalog)] == sorted(expected)
    assert vector_at(metadata, snapshot) == Vector({place(): upto(end)})
    assert snapshot.summary["total-records"] == str(end - 1)
    assert "busted" in snapshot.summary["k2.correction"]
    # The old values by the tag.
    before = rows_by_pyiceberg(catalog, metadata.refs[done.tag].snapshot_id)
    assert {row["platform_sequence"]: row for row in before} == rows
    told = notes(catalog)
    assert (told[gone]["action"], told[changed]["action"]) == ("cancel", "replace")
    assert told[gone]["old_price"] == rows[7]["price"]
    assert told[gone]["new_price"] is None
    assert told[changed]["new_price"] == Decimal("12.5")
    assert told[changed]["new_quantity"] == rows[60]["quantity"]
    assert told[changed]["reason"] == "busted by the venue"


def test_the_sink_and_compaction_go_on_after_a_correction(catalog):
    end, rows = filled(catalog)
    corrector(catalog).run([Correction(rows[5]["message_id"])], "why")
    end = fill(catalog, 4, start=end, symbols=SYMBOLS)
    assert Compactor(catalog, TRADES, policy=CompactionPolicy(min_files=3)).run().commits == 1
    assert stored(catalog) == [one for one in range(end) if one != 5]


def test_a_cancelled_id_stays_known(catalog):
    """A replay over a new log must not bring it back."""
    end, rows = filled(catalog)
    corrector(catalog).run([Correction(rows[0]["message_id"])], "why")
    reader = LakeReader(catalog)
    seeds = LakeSeeds(reader, reader.current(TRADES))
    (known,) = seeds.seed_intervals("BINANCE", [SYMBOLS[0]], Known("another epoch")).values()
    ids = {one for low, high in zip(known.starts, known.ends, strict=True)
           for one in range(low, high + 1)}  # fmt: skip
    assert ids == set(range(0, end, len(SYMBOLS)))


def test_all_rows_of_a_file_may_go(catalog):
    _, rows = filled(catalog, 1)
    corrector(catalog).run([Correction(row["message_id"]) for row in rows.values()], "why")
    assert stored(catalog) == []
    assert live_files(catalog) == {}
    fill(catalog, 1, start=48, symbols=SYMBOLS)
    assert stored(catalog) == list(range(48, 96))


def test_what_is_not_there_changes_nothing(catalog):
    _, rows = filled(catalog)
    before = head(catalog)[1]
    asked = [Correction(rows[1]["message_id"]), Correction("BINANCE:1723161500000:BTCUSDT:999")]
    with pytest.raises(LakeError, match=r"1 of 2 trades are not in market_data\.trades.*999"):
        corrector(catalog).run(asked, "why")
    assert head(catalog)[1] == before
    assert len(head(catalog)[0].refs) == 2


@pytest.mark.parametrize(
    ("asked", "reason", "words"),
    [
        ([Correction("BTCUSDT")], "why", "is not the identity of a trade"),
        ([Correction("B:1:S:1", {"price": "0"})], "why", "not a positive decimal"),
        ([Correction("B:1:S:1", {"price": "1e40"})], "why", "not a positive decimal"),
        ([Correction("B:1:S:1", {"quantity": "0.00000000001"})], "why", "not a positive decimal"),
        ([Correction("B:1:S:1", {"side": "buy"})], "why", "allowed: BUY, SELL"),
        ([Correction("B:1:S:1", {"symbol": "X"})], "why", "allowed: price, quantity, side"),
        ([Correction("B:1:S:1"), Correction("B:1:S:1")], "why", "named 2 times"),
        ([Correction("B:1:S:1")], " ", "needs a reason"),
        ([], "why", "no trade is named"),
    ],
)
def test_nonsense_is_refused(catalog, asked, reason, words):
    with pytest.raises(LakeError, match=words):
        corrector(catalog).run(asked, reason)


def test_a_compaction_in_between_is_outlived(catalog, monkeypatch):
    end, rows = filled(catalog, 4)
    tries = []

    class Overtaken(correct.ReplaceFiles):
        def build(self, loaded, attempt):
            if not tries:
                tries.append(attempt)
                Compactor(catalog, TRADES, policy=CompactionPolicy(min_files=2)).run()
                raise SupersededError("gone")
            return super().build(loaded, attempt)

    monkeypatch.setattr(correct, "ReplaceFiles", Overtaken)
    corrector(catalog).run([Correction(rows[3]["message_id"])], "why")
    assert stored(catalog) == [one for one in range(end) if one != 3]
    assert list(notes(catalog)) == [rows[3]["message_id"]]


def test_a_crash_before_the_commit_leaves_all_as_it_was(catalog, monkeypatch):
    end, rows = filled(catalog)
    asked = [Correction(rows[3]["message_id"])]

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Corrector, "_rewrite", crash)
        with pytest.raises(KeyboardInterrupt):
            corrector(catalog).run(asked, "why")
    assert stored(catalog) == list(range(end))
    corrector(catalog).run(asked, "why")
    assert stored(catalog) == [one for one in range(end) if one != 3]
    assert catalog.load_table(CORRECTIONS.identifier).scan().to_arrow().num_rows == 1


def test_the_tag_goes_with_the_history(catalog):
    _, rows = filled(catalog)
    tag = corrector(catalog).run([Correction(rows[3]["message_id"])], "why").tag
    metadata, snapshot = head(catalog)
    removed = [
        change.ref_name
        for change in due_tags(metadata, snapshot.timestamp_ms + 91 * DAY_MS)
        if change.action == "remove-snapshot-ref"
    ]
    assert removed == [tag]
    kept = due_tags(metadata, snapshot.timestamp_ms + 89 * DAY_MS)
    assert all(change.action != "remove-snapshot-ref" for change in kept)


def run(*words):
    return CliRunner().invoke(cli, ["correct", *words])


def test_by_hand(catalog, tmp_path):
    assert "K2_DATA_DIR" in os.environ
    end, rows = filled(catalog)
    one, two = rows[1]["message_id"], rows[2]["message_id"]
    shown = run("cancel", one, "--reason", "bust", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "would rewrite 1 files; nothing was changed" in shown.output
    assert len(stored(catalog)) == end
    file = tmp_path / "busts.csv"
    file.write_text(
        f"message_id,action,price,quantity,side\n{one},cancel,,,\n{two},replace,9.5,,SELL\n"
    )
    done = run("apply", str(file), "--reason", "bust", "--json")
    assert done.exit_code == 0, done.output
    assert [trade["action"] for trade in json.loads(done.output)["trades"]] == ["cancel", "replace"]
    assert len(stored(catalog)) == end - 1
    again = run("cancel", one, "--reason", "bust")
    assert again.exit_code == 1
    assert "market_data.corrections" in again.output


def test_a_file_that_contradicts_itself_is_refused(catalog, tmp_path):
    file = tmp_path / "busts.csv"
    file.write_text("message_id,action,price,quantity,side\nB:1:S:1,cancel,5,,\n")
    result = run("apply", str(file), "--reason", "bust")
    assert result.exit_code == 2
    assert "line 2" in result.output
