"""A catalog that fails on command, around a real one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.update import TableRequirement, TableUpdate


class Fault(Enum):
    """What happens to one commit request."""

    NONE = "it lands"
    LOST_REQUEST = "the connection breaks before the catalog saw it"
    LOST_REPLY = "it lands, and the connection breaks before the answer"
    SERVER_ERROR = "it lands, and the answer is a 502"
    CONFLICT = "another writer was first"
    CONFLICT_AFTER_LANDING = "it lands, and a retry below us is answered with a conflict"
    LATE = "no answer; it lands some loads of the table later"


class FaultyCatalog:
    """Passes everything to `inner`, but applies the next of `faults` to each commit.

    `load_failures`: how many of the next loads fail. `late_loads`: before which load from then a
    late request lands. Everything else is the real catalog's.
    """

    def __init__(self, inner: Catalog, faults: Iterable[Fault] = ()) -> None:
        self.inner = inner
        self.faults = deque(faults)
        self.load_failures = 0
        self.late_loads = 2
        self.commits = 0
        self._late: deque[list[Any]] = deque()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def load_table(self, identifier: Any) -> Table:
        if self.load_failures:
            self.load_failures -= 1
            raise ConnectionError("injected: the catalog is away")
        for request in list(self._late):
            request[0] -= 1
            if request[0] <= 0:
                self._late.remove(request)
                self._land_late(request[1])
        return self.inner.load_table(identifier)

    def commit_table(
        self,
        table: Table,
        requirements: tuple[TableRequirement, ...],
        updates: tuple[TableUpdate, ...],
    ) -> CommitTableResponse:
        self.commits += 1
        fault = self.faults.popleft() if self.faults else Fault.NONE
        if fault is Fault.LOST_REQUEST:
            raise ConnectionError("injected: request lost")
        if fault is Fault.CONFLICT:
            raise CommitFailedException("injected: branch main has changed")
        if fault is Fault.LATE:
            self._late.append([self.late_loads, (table, requirements, updates)])
            raise TimeoutError("injected: no answer")
        response = self.inner.commit_table(table, requirements, updates)
        if fault is Fault.LOST_REPLY:
            raise ConnectionError("injected: reply lost")
        if fault is Fault.SERVER_ERROR:
            raise CommitStateUnknownException("injected: 502")
        if fault is Fault.CONFLICT_AFTER_LANDING:
            raise CommitFailedException("injected: answered with a conflict")
        return response

    def _land_late(self, request: tuple[Any, Any, Any]) -> None:
        try:
            self.inner.commit_table(*request)
        except CommitFailedException:
            # Main has moved on: the request can never land any more.
            return
