"""What a table's metadata still refers to, and what lies in its directory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlparse

import pyarrow as pa
from pyarrow.fs import FileSelector, FileType
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from k2.errors import LakeError

_CACHED_MANIFESTS: Final = 4_096


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the store. `key`: its location without the scheme."""

    location: str
    bytes: int
    modified_s: float

    @property
    def key(self) -> str:
        return key_of(self.location)


def key_of(location: str) -> str:
    """A location without its scheme: engines write `file:/x`, `file:///x`, `s3a://` and `s3://`."""
    parsed = urlparse(location)
    return parsed.netloc + parsed.path


def listed(io: FileIO, location: str, *, recursive: bool = True) -> Iterator[StoredFile]:
    """The files below a location. Raises `LakeError` when the store cannot list."""
    if not isinstance(io, PyArrowFileIO):
        raise LakeError(f"files cannot be listed through {type(io).__name__}; use PyArrowFileIO")
    scheme, netloc, path = io.parse_location(location, io.properties)
    # S3 paths of Arrow begin with the bucket.
    prefix = f"{scheme}://" if scheme in ("file", "s3", "s3a", "s3n") else ""
    selector = FileSelector(path, recursive=recursive, allow_not_found=True)
    try:
        found = io.fs_by_scheme(scheme, netloc).get_file_info(selector)
    except (OSError, pa.ArrowException) as exc:
        raise LakeError(f"the store cannot list {location}: {exc}", location=location) from exc
    for info in found:
        if info.type == FileType.File:
            modified_ns = info.mtime_ns or 0
            yield StoredFile(prefix + info.path, info.size or 0, modified_ns / 1e9)


class Reach:
    """Keys of all files a table's metadata refers to. A manifest is read once and kept."""

    def __init__(self) -> None:
        self._manifests: OrderedDict[str, frozenset[str]] = OrderedDict()

    def keys(self, loaded: Table) -> set[str]:
        """Data files, manifests, lists and metadata files of every snapshot there is.

        Raises `LakeError` when one of them cannot be read: then nothing may be deleted.
        """
        metadata = loaded.metadata
        keys = {key_of(loaded.metadata_location)}
        keys |= {key_of(entry.metadata_file) for entry in metadata.metadata_log}
        keys |= {key_of(one.statistics_path) for one in metadata.statistics}
        keys |= {key_of(one.statistics_path) for one in metadata.partition_statistics}
        manifests: dict[str, ManifestFile] = {}
        for snapshot in metadata.snapshots:
            keys.add(key_of(snapshot.manifest_list))
            for one in self._of_list(snapshot, loaded.io):
                manifests[one.manifest_path] = one
        for path, manifest in manifests.items():
            keys.add(key_of(path))
            keys |= self._of_manifest(manifest, loaded.io)
        return keys

    def _of_list(self, snapshot: Snapshot, io: FileIO) -> list[ManifestFile]:
        try:
            return snapshot.manifests(io)
        except (OSError, pa.ArrowException) as exc:
            raise _unreadable(snapshot.manifest_list, exc) from exc

    def _of_manifest(self, manifest: ManifestFile, io: FileIO) -> frozenset[str]:
        path = manifest.manifest_path
        known = self._manifests.get(path)
        if known is None:
            try:
                entries = manifest.fetch_manifest_entry(io, discard_deleted=True)
            except (OSError, pa.ArrowException) as exc:
                raise _unreadable(path, exc) from exc
            known = frozenset(key_of(entry.data_file.file_path) for entry in entries)
            self._manifests[path] = known
            while len(self._manifests) > _CACHED_MANIFESTS:
                self._manifests.popitem(last=False)
        return known


def _unreadable(path: str, exc: Exception) -> LakeError:
    return LakeError(
        f"{path} cannot be read ({type(exc).__name__}): without it nobody knows which files are "
        "needed, so none is deleted; try again, or restore it",
        path=path,
    )
