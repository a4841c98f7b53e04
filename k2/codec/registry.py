"""Schema registries: which schema an id on the wire stands for, and what may follow it.

`SchemaRegistry` is the contract; `FileRegistry` keeps it in the data directory, for one machine;
`k2.codec.http_registry.HttpRegistry` asks a Confluent-compatible server.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from k2.codec.compat import incompatibilities
from k2.codec.schemas import compact
from k2.errors import (
    RegistryUnavailableError,
    SchemaError,
    SchemaIncompatibleError,
    SchemaNotFoundError,
)

log = structlog.get_logger(__name__)

COMPATIBILITY: Final = "BACKWARD"


@dataclass(frozen=True, slots=True)
class Registered:
    """A schema under a subject. `version` counts from 1; `schema_id` is what stands on the wire."""

    subject: str
    version: int
    schema_id: int
    schema: str


class SchemaRegistry(Protocol):
    """Subjects with versions of Avro schemas, BACKWARD compatible, and ids that never change.

    All calls may block (disk or network): from the event loop, call them in a thread. Every method
    raises `RegistryUnavailableError` when the registry cannot be asked.
    """

    def register(self, subject: str, schema_text: str) -> int:
        """Id of the schema under the subject, registering it when new.

        The same schema has the same id under any subject. Raises `SchemaIncompatibleError` with
        the registry's reason when the subject's latest version cannot be read with it.
        """

    def schema(self, schema_id: int) -> str:
        """Text of the schema with this id. Raises `SchemaNotFoundError`."""

    def latest(self, subject: str) -> Registered:
        """Newest version under the subject. Raises `SchemaNotFoundError`."""

    def check_compatible(self, subject: str, schema_text: str) -> list[str]:
        """Why the schema could not follow the subject's latest version; empty when it could."""


class FileRegistry:
    """A registry in one JSON file, `registry.json` under `directory`.

    Ids come from the schema's content, so they stay the same when the file is lost and written
    anew, and the log's records stay readable. Writers exclude each other by a lock file; readers
    need none, because the file is replaced in one step.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "registry.json"
        self._lock_path = directory / "registry.lock"
        self._texts: dict[int, str] = {}

    def register(self, subject: str, schema_text: str) -> int:
        text = _canonical(schema_text)
        with self._locked():
            state = self._load()
            versions = state["subjects"].setdefault(subject, [])
            for known in versions:
                if state["schemas"][str(known)] == text:
                    return int(known)
            if versions:
                self._demand_compatible(subject, text, state["schemas"][str(versions[-1])])
            schema_id = _free_id(text, state["schemas"])
            state["schemas"][str(schema_id)] = text
            versions.append(schema_id)
            self._store(state)
        log.info("schema registered", subject=subject, id=schema_id, version=len(versions))
        return schema_id

    def schema(self, schema_id: int) -> str:
        if schema_id not in self._texts:
            # Another process may have registered it since the file was last read.
            self._texts = {int(key): text for key, text in self._load()["schemas"].items()}
        if schema_id not in self._texts:
            raise SchemaNotFoundError(
                f"{str(self._path)!r} has no schema with the id {schema_id}", schema_id=schema_id
            )
        return self._texts[schema_id]

    def latest(self, subject: str) -> Registered:
        state = self._load()
        versions = state["subjects"].get(subject)
        if not versions:
            raise SchemaNotFoundError(
                f"{str(self._path)!r} has no subject {subject!r}", subject=subject
            )
        text = state["schemas"][str(versions[-1])]
        return Registered(subject, len(versions), versions[-1], text)

    def check_compatible(self, subject: str, schema_text: str) -> list[str]:
        try:
            before = self.latest(subject)
        except SchemaNotFoundError:
            return []
        return incompatibilities(_canonical(schema_text), before.schema)

    def _demand_compatible(self, subject: str, text: str, before: str) -> None:
        reasons = incompatibilities(text, before)
        if reasons:
            raise SchemaIncompatibleError(
                f"subject {subject!r} is {COMPATIBILITY} and refuses the schema: "
                f"{'; '.join(reasons)}",
                subject=subject,
                reasons=reasons,
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock_path.open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
        except OSError as exc:
            raise RegistryUnavailableError(
                f"the schema registry {str(self._path)!r} is not writable: {exc}"
            ) from exc

    def _load(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"compatibility": COMPATIBILITY, "schemas": {}, "subjects": {}}
        except (OSError, ValueError) as exc:
            raise RegistryUnavailableError(
                f"the schema registry {str(self._path)!r} is not readable: {exc}; delete the file "
                "and start again, ids come from the schemas' content and stay the same"
            ) from exc
        return state

    def _store(self, state: dict[str, Any]) -> None:
        draft = self._path.with_suffix(".tmp")
        with draft.open("w", encoding="utf-8") as handle:
            json.dump(state, handle, indent=1, ensure_ascii=False)
            handle.flush()
            os.fsync(handle.fileno())
        draft.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            # Without it a power cut may undo the rename while the log keeps records of the id.
            os.fsync(directory)
        finally:
            os.close(directory)


def _canonical(schema_text: str) -> str:
    """The text that identity is judged by. Raises `SchemaError` on anything but a schema."""
    try:
        schema = json.loads(schema_text)
        reasons = incompatibilities(schema_text, schema_text)
    except (ValueError, KeyError, TypeError) as exc:
        raise SchemaError(f"not an Avro schema: {exc!r} in {schema_text[:80]!r}") from exc
    if reasons:
        raise SchemaError(f"the schema contradicts itself: {reasons[0]}", reasons=reasons)
    return compact(schema)


def _free_id(text: str, taken: dict[str, str]) -> int:
    """31 bits of the content's digest; the next free id when another schema has them."""
    digest = hashlib.sha256(text.encode()).digest()
    schema_id = int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF or 1
    while taken.get(str(schema_id), text) != text:
        schema_id = schema_id % 0x7FFF_FFFF + 1
    return schema_id
