"""The reference pages and `k2 config` say what the code says."""

import json
from pathlib import Path

from click.testing import CliRunner

from k2.cli.docs import PAGES
from k2.cli.main import _COMMANDS, cli

DOCS = Path(__file__).parents[2] / "docs"


def test_generated_pages_are_current():
    for name, page in PAGES.items():
        assert (DOCS / name).read_text(encoding="utf-8") == page(), f"run `make docs` for {name}"


def test_config_masks_secrets_and_names_the_origin(monkeypatch):
    monkeypatch.setenv("K2_API_KEY", "very-secret")
    result = CliRunner().invoke(cli, ["config", "--json"])
    assert result.exit_code == 0
    assert "very-secret" not in result.output
    shown = json.loads(result.output)
    assert shown["K2_API_KEY"] == {"value": "********", "origin": "environment"}
    assert shown["K2_SINK_BATCH_SIZE"] == {"value": "1000", "origin": "default"}


def test_config_masks_passwords_in_addresses(monkeypatch):
    monkeypatch.setenv("K2_ICEBERG_CATALOG_URI", "postgresql+psycopg2://k2:hush@db:5432/lake")
    result = CliRunner().invoke(cli, ["config"])
    assert "hush" not in result.output
    assert "postgresql+psycopg2://k2:********@db:5432/lake" in result.output


def test_config_names_misspelt_variables_and_the_nearest_setting(monkeypatch):
    monkeypatch.setenv("K2_BINANCE_SYMBOL", "BTCUSDT")
    result = CliRunner().invoke(cli, ["config", "--json"])
    assert result.exit_code == 0
    assert "did you mean K2_BINANCE_SYMBOLS?" in result.stderr
    assert "K2_BINANCE_SYMBOLS" in json.loads(result.stdout)


def test_an_error_is_one_line(monkeypatch):
    monkeypatch.setenv("K2_API_PORT", "http")
    result = CliRunner().invoke(cli, ["config"])
    assert result.exit_code == 2
    assert result.output.startswith("k2: K2_API_PORT='http' is not usable; allowed: a whole number")
    assert "Traceback" not in result.output


def test_help_lists_every_command():
    result = CliRunner().invoke(cli, ["--help"])
    listed = {line.split()[0] for line in result.output.splitlines() if line.startswith("  ")}
    assert set(_COMMANDS) <= listed
    assert max(map(len, result.output.splitlines())) <= 80
