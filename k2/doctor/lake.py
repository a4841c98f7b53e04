"""The lake: catalog, tables, and whether files can be written where they belong."""

from __future__ import annotations

import time
import uuid
from urllib.parse import urlsplit

from pyarrow.fs import FileSystem
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.io.pyarrow import PyArrowFileIO

from k2.doctor.finding import Finding
from k2.errors import LakeError
from k2.lake.catalog import open_catalog, warehouse
from k2.lake.tables import TABLES, verify
from k2.settings import Settings

_STORAGE = "storage"
_SKEW_S = 5.0


def look_at_lake(settings: Settings) -> list[Finding]:
    """Catalog and tables. Raises `LakeError`."""
    catalog = open_catalog(settings)
    return [_table(catalog, name) for name in TABLES]


def _table(catalog: Catalog, name: str) -> Finding:
    check, wanted = f"table {name}", TABLES[name]
    try:
        found = catalog.load_table(wanted.identifier)
    except NoSuchTableError:
        return Finding(check, "warning", "is not there", "start a worker, which creates it")
    except Exception as exc:
        raise LakeError(f"the catalog does not give {wanted}: {exc}") from exc
    verify(wanted, found.metadata)
    snapshot = found.current_snapshot()
    if snapshot is None:
        return Finding(check, "ok", "no snapshot yet")
    age_s = time.time() - snapshot.timestamp_ms / 1_000
    files = (snapshot.summary or {}).get("total-data-files", "?")  # type: ignore[call-overload]
    detail = f"{files} files, {len(found.metadata.snapshots)} snapshots, newest {age_s:.0f} s old"
    return Finding(check, "ok", detail)


def look_at_storage(settings: Settings) -> list[Finding]:
    """Write, read and delete a small file; its time also tells whether the clocks agree."""
    catalog = open_catalog(settings)
    location = f"{warehouse(settings).rstrip('/')}/.k2-doctor-{uuid.uuid4().hex}"
    io = PyArrowFileIO(dict(catalog.properties))
    try:
        began_s = time.monotonic()
        with io.new_output(location).create() as stream:
            stream.write(b"k2")
        with io.new_input(location).open() as source:
            same = source.read() == b"k2"
        took_ms = (time.monotonic() - began_s) * 1_000
        skew_s = _skew_s(io, location)
        io.delete(location)
    except Exception as exc:
        raise LakeError(f"{warehouse(settings)} takes no file: {exc}") from exc
    if not same:
        return [Finding(_STORAGE, "failed", "a file reads back as other bytes", "replace it")]
    findings = [Finding(_STORAGE, "ok", f"write, read, delete in {took_ms:.0f} ms")]
    if abs(skew_s) > _SKEW_S:
        findings.append(
            Finding(
                "clock",
                "warning",
                f"this machine is {skew_s:+.1f} s from the storage",
                "run an NTP client on both: receive times and freshness are wrong otherwise",
            )
        )
    else:
        findings.append(Finding("clock", "ok", f"{skew_s:+.1f} s from the storage"))
    return findings


def _skew_s(io: PyArrowFileIO, location: str) -> float:
    parts = urlsplit(location)
    scheme = parts.scheme or "file"
    filesystem: FileSystem = io.fs_by_scheme(scheme, parts.netloc or None)
    path = f"{parts.netloc}{parts.path}" if parts.netloc else parts.path
    modified = filesystem.get_file_info(path).mtime
    return 0.0 if modified is None else time.time() - modified.timestamp()
