import json

from click.testing import CliRunner

from k2.cli.main import cli
from tests.maintenance.lakes import fill


def test_the_bench_counts_every_row():
    words = ["bench", "lake", "--commits", "30", "--rows", "200", "--symbols", "40", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["rows"], found["lost"], found["duplicated"]) == (6_000, 0, 0)
    assert 0 < found["live_files"] <= 30
    assert found["times_rewritten"] > 0
    assert found["query_ratio"] > 0


def test_compression_is_measured_on_the_lake_there_is(catalog, tmp_path):
    fill(catalog, 2, rows=500)
    frames = tmp_path / "frames.jsonl"
    frames.write_bytes(b"x" * 1_000_000)
    result = CliRunner().invoke(cli, ["bench", "compression", "--frames", str(frames), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["rows"], found["raw_bytes"]) == (1_000, 1_000_000)
    by_codec = {one["codec"]: one for one in found["codecs"]}
    assert by_codec["none"]["to_uncompressed"] == 1.0
    assert by_codec["zstd-3"]["bytes"] < by_codec["snappy"]["bytes"] < by_codec["none"]["bytes"]
    for codec, times in found["raw_to_parquet"].items():
        assert times == round(1_000_000 / by_codec[codec]["bytes"], 2)


def test_an_empty_lake_has_nothing_to_compress(catalog):
    result = CliRunner().invoke(cli, ["bench", "compression", "--json"])
    assert result.exit_code == 1
