"""Catalogs the lake's behaviour suite runs over."""

from __future__ import annotations

from pathlib import Path

import pytest

from k2.lake.catalog import open_catalog
from k2.lake.tables import ensure_tables
from k2.settings import Settings, load_settings

#: Every kind of catalog the suite runs over; `tests/services` adds REST and PostgreSQL.
CATALOGS = ("sqlite",)


def settings_in(path: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    monkeypatch.setenv("K2_DATA_DIR", str(path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.fixture(params=CATALOGS)
def lake_settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    return settings_in(tmp_path / "data", monkeypatch)


@pytest.fixture
def catalog(lake_settings: Settings):
    opened = open_catalog(lake_settings)
    ensure_tables(opened, lake_settings.iceberg.compression)
    yield opened
    opened.close()
