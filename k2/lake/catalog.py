"""Open the Iceberg catalog the settings name.

Default: SQLite at `DATA_DIR/catalog.db` and files under `DATA_DIR/warehouse`, which any PyIceberg
opens with `load_catalog("k2", type="sql", uri="sqlite:///DATA_DIR/catalog.db")`. Otherwise a REST
catalog (`http://`, `https://`) or a SQL one (`postgresql+psycopg2://`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import RESTError
from pyiceberg.io import FileIO
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import CommitTableResponse, StagedTable, Table
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import (
    TableRequirement,
    TableUpdate,
    _apply_table_update,
    _TableMetadataUpdateContext,
    _update_table_metadata_log,
)
from pyiceberg.typedef import EMPTY_DICT, Identifier, Properties
from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from requests.exceptions import RequestException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    IntegrityError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

from k2.errors import ConfigError, LakeError
from k2.settings import Settings

log = structlog.get_logger(__name__)

CATALOG_NAME: Final = "k2"
#: Seconds SQLite waits for another process's write lock before it gives up.
_BUSY_S: Final = 30
_CACHED_METADATA: Final = 16
#: Each of a catalog's two tables can be made by somebody else while we look.
_RACES: Final = 3
#: Seconds to wait for a REST catalog or S3: to connect, and for an answer.
_CONNECT_S: Final = 10
_ANSWER_S: Final = 30


class CachingSqlCatalog(SqlCatalog):
    """PyIceberg's SQL catalog without re-reading metadata it has already read.

    A metadata file is immutable, so its location is its identity. The row in the catalog is read
    every time: that is what says which metadata is current.
    """

    def __init__(self, name: str, **properties: str) -> None:
        self._metadata: OrderedDict[str, TableMetadata] = OrderedDict()
        self._metadata_lock = threading.Lock()
        self._ios: dict[tuple[str, frozenset[tuple[str, Any]]], FileIO] = {}
        super().__init__(name, **properties)

    def _load_file_io(
        self, properties: Properties = EMPTY_DICT, location: str | None = None
    ) -> FileIO:
        """One for all tables of the same properties and kind of store.

        A new one at each look at a table, a dozen a second, was a cycle of objects each time.
        """
        key = (urlsplit(location or "").scheme, frozenset(properties.items()))
        known = self._ios.get(key)
        if known is None:
            known = self._ios.setdefault(key, super()._load_file_io(properties, location))
        return known

    def _convert_orm_to_iceberg(self, orm_table: IcebergTables) -> Table:
        location = orm_table.metadata_location
        if not location:
            return super()._convert_orm_to_iceberg(orm_table)
        with self._metadata_lock:
            metadata = self._metadata.get(location)
        if metadata is None:
            file_io = self._load_file_io(location=location)
            metadata = FromInputFile.table_metadata(file_io.new_input(location))
            self._remember(location, metadata)
        return Table(
            identifier=(*orm_table.table_namespace.split("."), orm_table.table_name),
            metadata=metadata,
            metadata_location=location,
            io=self._load_file_io(metadata.properties, location),
            catalog=self,
        )

    def commit_table(
        self,
        table: Table,
        requirements: tuple[TableRequirement, ...],
        updates: tuple[TableUpdate, ...],
    ) -> CommitTableResponse:
        response = super().commit_table(table, requirements, updates)
        self._remember(response.metadata_location, response.metadata)
        return response

    def _update_and_stage_table(
        self,
        current_table: Table | None,
        table_identifier: Identifier,
        requirements: tuple[TableRequirement, ...],
        updates: tuple[TableUpdate, ...],
    ) -> StagedTable:
        """As PyIceberg's, without its deep copy of the metadata.

        The copy took a third of a commit's time and grew with the history, and nobody needs it:
        every update makes new lists and leaves those it found as they were.
        """
        if current_table is None:
            return super()._update_and_stage_table(None, table_identifier, requirements, updates)
        for requirement in requirements:
            requirement.validate(current_table.metadata)
        metadata = _updated(current_table.metadata, updates, current_table.metadata_location)
        version = self._parse_metadata_version(current_table.metadata_location) + 1
        provider = load_location_provider(metadata.location, metadata.properties)
        location = provider.new_table_metadata_file_location(version)
        io = self._load_file_io(metadata.properties, location)
        return StagedTable(table_identifier, metadata, location, io, self)

    def _remember(self, location: str, metadata: TableMetadata) -> None:
        with self._metadata_lock:
            self._metadata[location] = metadata
            while len(self._metadata) > _CACHED_METADATA:
                self._metadata.popitem(last=False)


def _updated(base: TableMetadata, updates: tuple[TableUpdate, ...], location: str) -> TableMetadata:
    """PyIceberg's `update_table_metadata` of this very version, but for the copy."""
    context = _TableMetadataUpdateContext()
    metadata = base
    for update in updates:
        metadata = _apply_table_update(update, metadata, context)
    if context.has_changes():
        metadata = _update_table_metadata_log(metadata, location, base.last_updated_ms)
        if base.last_updated_ms == metadata.last_updated_ms:
            now_ms = time.time_ns() // 1_000_000
            metadata = metadata.model_copy(update={"last_updated_ms": now_ms})
    metadata.spec().check_compatible(metadata.schema())
    metadata.sort_order().check_compatible(metadata.schema())
    return metadata


def open_catalog(settings: Settings) -> Catalog:
    """The catalog of the settings.

    Raises `ConfigError` for a URI that is neither REST nor SQL, `LakeError` when it does not
    answer. Neither shows a password.
    """
    iceberg = settings.iceberg
    uri = iceberg.catalog_uri or _sqlite_uri(settings.core.data_dir)
    base = warehouse(settings)
    properties = {"warehouse": base, **file_properties(settings, base)}
    shown = _without_password(uri)
    try:
        if uri.startswith(("http://", "https://")):
            if token := iceberg.catalog_token.get_secret_value():
                properties["token"] = token
            catalog = load_catalog(CATALOG_NAME, **{"type": "rest", "uri": uri, **properties})
            _limit_waiting(catalog)
            return catalog
        password = iceberg.catalog_password.get_secret_value()
        return _sql_catalog(_with_password(uri, password), properties)
    except ImportError as exc:
        raise ConfigError(
            f"the driver for K2_ICEBERG_CATALOG_URI={shown} is not installed ({exc.name}); for "
            "PostgreSQL install psycopg2-binary",
            variable="K2_ICEBERG_CATALOG_URI",
        ) from exc
    except (RESTError, RequestException, SQLAlchemyError, OSError) as exc:
        raise LakeError(
            f"the Iceberg catalog at {shown} does not answer ({type(exc).__name__}); check "
            "K2_ICEBERG_CATALOG_URI and that the server runs",
            uri=shown,
        ) from exc


def _sql_catalog(uri: str, properties: dict[str, str]) -> CachingSqlCatalog:
    """Open it, making its tables where there are none.

    Workers that start together all find none, and all but one are told that there are some now.
    """
    for _ in range(_RACES):
        try:
            return CachingSqlCatalog(CATALOG_NAME, uri=uri, **properties)
        except (IntegrityError, OperationalError, ProgrammingError) as exc:
            if not isinstance(exc, IntegrityError) and "already exists" not in str(exc):
                raise
            log.debug("catalog_made_meanwhile", error=type(exc).__name__)
    return CachingSqlCatalog(CATALOG_NAME, uri=uri, **properties)


class _TimedAdapter(HTTPAdapter):
    """Requests never wait for ever: PyIceberg sets no timeout."""

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        kwargs["timeout"] = kwargs.get("timeout") or (_CONNECT_S, _ANSWER_S)
        return super().send(request, *args, **kwargs)


def _limit_waiting(catalog: Catalog) -> None:
    session = getattr(catalog, "_session", None)
    if isinstance(session, Session):
        for prefix in ("http://", "https://"):
            session.mount(prefix, _TimedAdapter())


def warehouse(settings: Settings) -> str:
    """Base location of the tables, a URI."""
    if settings.iceberg.warehouse:
        return settings.iceberg.warehouse
    return (settings.core.data_dir.absolute() / "warehouse").as_uri()


def _sqlite_uri(data_dir: Path) -> str:
    path = data_dir.absolute() / "catalog.db"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_BUSY_S)
        try:
            # Readers in other processes must not block the commit, nor it them; the mode stays
            # with the file.
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as exc:
        raise LakeError(
            f"the catalog file {path} cannot be opened: {exc}; K2_DATA_DIR must be a directory "
            "this process can write",
            path=str(path),
        ) from exc
    return f"sqlite:///{path}?timeout={_BUSY_S}"


def file_properties(settings: Settings, location: str) -> dict[str, str]:
    """What PyIceberg needs to read and write files below `location`."""
    iceberg = settings.iceberg
    if not location.startswith("s3"):
        return {}
    values = {
        "s3.connect-timeout": str(_CONNECT_S),
        "s3.request-timeout": str(_ANSWER_S),
        "s3.endpoint": iceberg.s3_endpoint,
        "s3.access-key-id": iceberg.s3_access_key.get_secret_value(),
        "s3.secret-access-key": iceberg.s3_secret_key.get_secret_value(),
        "s3.region": iceberg.s3_region,
    }
    return {name: value for name, value in values.items() if value}


def _with_password(uri: str, password: str) -> str:
    if not password:
        return uri
    return make_url(uri).set(password=password).render_as_string(hide_password=False)


def _without_password(uri: str) -> str:
    if uri.startswith(("http://", "https://")):
        scheme, _, rest = uri.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"
    try:
        return make_url(uri).render_as_string(hide_password=True)
    except SQLAlchemyError as exc:
        raise ConfigError(
            "K2_ICEBERG_CATALOG_URI is not a URI; allowed: http(s)://…, postgresql+psycopg2://… "
            "or empty for SQLite",
            variable="K2_ICEBERG_CATALOG_URI",
        ) from exc
