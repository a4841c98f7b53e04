"""The codec benchmark runs and says what it measured."""

from __future__ import annotations

import json

from click.testing import CliRunner

from k2.cli.bench.codec import codec


def test_every_step_is_measured() -> None:
    text = CliRunner().invoke(codec, ["--records", "500", "--rounds", "1"], catch_exceptions=False)
    assert "decode" in text.output
    answer = CliRunner().invoke(codec, ["--json", "--records", "500", "--rounds", "1"])
    result = json.loads(answer.stdout.splitlines()[-1])
    assert result["records"] == 500
    assert all(result[name] > 0 for name in ("decode", "encode", "rules", "ids", "to_lake"))
