"""What is over is given back, by the clock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import weakref

import pytest

from k2 import memory
from k2.lake.catalog import CATALOG_NAME, CachingSqlCatalog
from k2.testing.clock import ManualClock


class Knot:
    """Only the search for cycles finds it."""

    def __init__(self) -> None:
        self.itself = self


async def test_cycles_are_found_within_seconds() -> None:
    clock = ManualClock()
    tidying = asyncio.create_task(memory.keep_tidy(clock))
    before = gc.get_threshold()
    gc.set_threshold(1_000_000, 1_000, 1_000)
    try:
        gone = weakref.ref(Knot())
        assert gone() is not None
        await clock.advance(5.0)
        assert gone() is None
        old = Knot()
        lasting = weakref.ref(old)
        await clock.advance(20.0)
        del old
        await clock.advance(60.0)
        assert lasting() is None, "also what outlived some looks"
        assert not tidying.done()
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
        tidying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tidying


@pytest.mark.parametrize(
    ("chosen", "backend"), [(None, "jemalloc"), ("system", "system"), ("mimalloc", "mimalloc")]
)
def test_the_allocator_is_jemalloc_unless_another_is_chosen(
    chosen: str | None, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    if chosen is not None:
        monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", chosen)
    code = (
        "import pyarrow as pa; from k2.memory import choose_allocator; choose_allocator(); "
        "print(pa.default_memory_pool().backend_name)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == backend


def test_looks_at_a_table_leave_no_cycles_of_file_access_behind(tmp_path) -> None:
    catalog = CachingSqlCatalog(
        CATALOG_NAME, uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=tmp_path.as_uri()
    )
    catalog.create_namespace("a")
    from pyiceberg.schema import Schema

    catalog.create_table("a.b", Schema())
    first, second = catalog.load_table("a.b"), catalog.load_table("a.b")
    assert first is not second
    assert first.io is second.io
    catalog.close()
