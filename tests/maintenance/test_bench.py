import json

from click.testing import CliRunner

from k2.cli.main import cli


def test_the_bench_counts_every_row():
    words = ["bench", "lake", "--commits", "30", "--rows", "200", "--symbols", "40", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["rows"], found["lost"], found["duplicated"]) == (6_000, 0, 0)
    assert 0 < found["live_files"] <= 30
    assert found["times_rewritten"] > 0
    assert found["query_ratio"] > 0
