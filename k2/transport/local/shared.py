"""Open stores of this process: whoever names the same directory shares one."""

from __future__ import annotations

import atexit
import threading
from pathlib import Path
from typing import Any

from k2.transport.local.store import LogStore

_stores: dict[Path, tuple[LogStore, int]] = {}
_lock = threading.Lock()


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
        open_store, users = _stores[store.directory]
        if users > 1:
            _stores[store.directory] = (open_store, users - 1)
            return
        del _stores[store.directory]
        open_store.close()


@atexit.register
def _close_all() -> None:
    """Leave clean marks behind, so that the next start need not check the files."""
    with _lock:
        stores = [store for store, _ in _stores.values()]
        _stores.clear()
    for store in stores:
        store.close()
