import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.serializers import FromInputFile
from pyiceberg.types import DoubleType, StringType

from k2.errors import ConfigError, K2Error, LakeError
from k2.lake.catalog import open_catalog
from k2.lake.tables import TABLES, TRADES, ensure_table, ensure_tables
from k2.maintenance.keeper import Keeper
from tests.lake.conftest import settings_in
from tests.maintenance.lakes import fill


def test_tables_are_created_as_defined(catalog):
    for table in TABLES.values():
        found = catalog.load_table(table.identifier)
        assert found.schema().as_struct() == table.schema.as_struct()
        assert found.spec().fields == table.partition_spec.fields
        assert found.sort_order().fields == table.sort_order.fields
        assert found.properties["write.parquet.compression-codec"] == "zstd"


def test_opening_again_changes_nothing(catalog):
    before = {name: t.metadata_location for name, t in ensure_tables(catalog, "zstd").items()}
    after = {name: t.metadata_location for name, t in ensure_tables(catalog, "snappy").items()}
    assert before == after


def test_field_ids_are_the_column_order():
    ids = {field.name: field.field_id for field in TRADES.schema.fields}
    assert list(ids.values()) == list(range(1, 21))
    assert (ids["message_id"], ids["price"], ids["platform_sequence"]) == (1, 9, 20)
    assert TRADES.schema.find_field("trade_conditions").field_type.element_id == 21


def test_a_renamed_column_is_refused_with_its_name(catalog):
    table = catalog.load_table(TRADES.identifier)
    with table.update_schema() as update:
        update.rename_column("price", "px")
    with pytest.raises(LakeError, match="column 'price' is missing; add it as decimal"):
        ensure_table(catalog, TRADES, "zstd")


def test_a_column_of_another_type_is_refused(catalog):
    table = catalog.load_table(TRADES.identifier)
    with table.update_schema(allow_incompatible_changes=True) as update:
        update.delete_column("price")
        update.add_column("price", DoubleType())
    with pytest.raises(LakeError, match=r"column 'price' has .*double.*instead of .*decimal"):
        ensure_table(catalog, TRADES, "zstd")


def test_more_optional_columns_are_fine(catalog):
    with catalog.load_table(TRADES.identifier).update_schema() as update:
        update.add_column("note", StringType())
    ensure_table(catalog, TRADES, "zstd")


def test_a_plain_pyiceberg_opens_the_default_lake(catalog, lake_settings):
    uri = f"sqlite:///{lake_settings.core.data_dir.absolute()}/catalog.db"
    plain = load_catalog("k2", type="sql", uri=uri)
    assert plain.load_table("market_data.trades").schema().find_field("price").field_id == 9
    plain.close()


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_a_catalog_that_cannot_be_opened_is_named_without_its_password(
    scheme, tmp_path, monkeypatch
):
    uri = f"{scheme}://me:hush@127.0.0.1:1/lake"
    settings = settings_in(tmp_path, monkeypatch, K2_ICEBERG_CATALOG_URI=uri)
    with pytest.raises(K2Error, match=r"does not answer|psycopg2-binary") as caught:
        open_catalog(settings)
    assert "127.0.0.1" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_something_that_is_no_uri_is_a_configuration_error(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="K2_ICEBERG_CATALOG_URI"):
        open_catalog(settings_in(tmp_path, monkeypatch, K2_ICEBERG_CATALOG_URI="my catalog"))


def test_a_commit_leaves_the_metadata_it_builds_on_as_it_was(catalog):
    """It is shared between threads, and not copied."""
    fill(catalog, 3)
    before = catalog.load_table(TRADES.identifier)
    text = before.metadata.model_dump_json()
    fill(catalog, 2, start=144)
    Keeper(catalog, TRADES).tag("a")
    Keeper(catalog, TRADES).expire()
    assert before.metadata.model_dump_json() == text
    fresh = FromInputFile.table_metadata(
        before.io.new_input(catalog.load_table(TRADES.identifier).metadata_location)
    )
    assert fresh == catalog.load_table(TRADES.identifier).metadata
