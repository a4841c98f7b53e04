"""Open stores of this process: whoever names the same directory shares one."""

from __future__ import annotations

import atexit
import threading
from pathlib import Path
from typing import Any

import structlog

from k2.errors import LogError
from k2.transport.local.store import LogStore

logger = structlog.get_logger(__name__)

_stores: dict[Path, tuple[LogStore, int]] = {}
#: Reentrant: a release may come from the garbage collector in the middle of an acquire.
_lock = threading.RLock()


def acquire(directory: Path, **options: Any) -> LogStore:
    """The open store of `directory`, opened with `options` (see `LogStore`) if it is not yet.

    Every call needs one `release`. Raises `LogLockedError`, `LogCorruptError`.
    """
    path = directory.absolute().resolve()
    with _lock:
        store, users = _stores.get(path, (None, 0))
        if store is None:
            store = LogStore(path, **options)
        _stores[path] = (store, users + 1)
        return store


def release(store: LogStore) -> None:
    """Give up one use; the last one closes the store. Raises `LogError`."""
    with _lock:
        found, users = _stores.get(store.directory, (None, 0))
        if found is not store:
            return  # closed at exit already
        if users > 1:
            _stores[store.directory] = (store, users - 1)
            return
        del _stores[store.directory]
        store.close()


@atexit.register
def _close_all() -> None:
    """Leave clean marks behind, so that the next start need not check the files."""
    with _lock:
        stores = [store for store, _ in _stores.values()]
        _stores.clear()
    for store in stores:
        try:
            store.close()
        except LogError as exc:
            logger.exception("close_failed", error=exc.message, **exc.details)
