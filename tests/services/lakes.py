"""Lakes on real services, each test's empty."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from k2.dev.s3 import BUCKET, S3
from k2.dev.stack import variables
from k2.lake.catalog import open_catalog
from k2.lake.tables import TABLES
from k2.settings import Settings, load_settings

#: Catalog and store of each lake.
LAKES = ("rest+s3", "postgres+s3", "postgres+files")


def lake_variables(kind: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """K2's settings of the lake `kind`, its services started."""
    catalog, _, store = kind.partition("+")
    services = {}
    if store == "s3":
        services["s3"] = request.getfixturevalue("s3_server")
    if catalog == "rest":
        services["catalog"] = request.getfixturevalue("rest_catalog")
    else:
        services["postgres"] = request.getfixturevalue("postgres_server")
    return variables(services)


@pytest.fixture(params=LAKES)
def lake_settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """Settings of a lake without tables."""
    monkeypatch.setenv("K2_DATA_DIR", str(tmp_path / "data"))
    for name, value in lake_variables(request.param, request).items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    yield settings
    on_s3 = request.param.endswith("+s3")
    empty(settings, request.getfixturevalue("s3_server") if on_s3 else None)


def empty(settings: Settings, s3: S3 | None) -> None:
    """Forget every table of the lake, and what is in its bucket."""
    catalog = open_catalog(settings)
    for table in TABLES.values():
        if catalog.table_exists(table.identifier):
            catalog.drop_table(table.identifier)
    catalog.close()
    if s3 is not None:
        for place in (s3.directory / "data" / BUCKET).iterdir():
            shutil.rmtree(place)
