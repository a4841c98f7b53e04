"""What a query gives: rows, and which state of the tables they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pyarrow as pa

from k2.query.cold import ColdSnapshot
from k2.query.encode import JSON_COLUMNS
from k2.query.json_text import json_rows
from k2.query.kept import Footprint
from k2.query.lake_table import AsOf
from k2.query.seam import Pin

R = TypeVar("R", bound=Sized)
#: Of the rows found: those of the answer, and its columns.
Show = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an answer's rows are: `as_of` per table, `partial` when rows are missing for now.

    `cut_short`: they are missing because the deadline came. `fixed`: the rows can never change.
    `clock`: the answer depends on when it was asked for. `newest_us`: per table of `as_of`, when
    the newest row that could be seen came; None: there is none.
    """

    as_of: Mapping[str, Any]
    partial: bool = False
    truncated: bool = False
    files_read: int | None = None
    cut_short: bool = False
    fixed: bool = False
    clock: bool = False
    newest_us: Mapping[str, int | None] = field(default_factory=dict)
    #: The files all of this came from; None: also from memory, or nobody needs to know.
    read: Footprint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Seen):
    """Rows and what they are. `json`: of the part of them that `show` of the question chose."""

    rows: pa.Table
    json: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HotAnswer(Seen, Generic[R]):
    """Rows that are all in memory, in whatever form; `texts` makes them JSON."""

    rows: R
    texts: Callable[[R], list[bytes]]


def answer_of(
    pins: Mapping[str, Pin[ColdSnapshot]],
    rows: pa.Table,
    at: AsOf | None,
    show: Show | None = None,
    **more: Any,
) -> Answer:
    """`rows`, and what they are by their pins; `at`: the state that was asked for.

    `show`: what of them is wanted as JSON, made in the thread that found them: another would have
    to wait for the interpreter once more. At the deadline there is no time left for that.
    """
    late = more.get("cut_short", False)
    return Answer(
        rows=rows,
        json=None if late or show is None else json_rows(show(rows), parse_json=JSON_COLUMNS),
        as_of={name: pinned.as_of() for name, pinned in pins.items()},
        newest_us={name: newest_us(pinned) for name, pinned in pins.items()},
        partial=late or any(pinned.partial for pinned in pins.values()),
        # A time names another snapshot once an older one has expired; an id does not.
        fixed=at is not None and at.snapshot_id is not None,
        **more,
    )


def hot_answer_of(
    table: str,
    pinned: Pin[ColdSnapshot],
    rows: R,
    texts: Callable[[R], list[bytes]],
    files_read: int | None = None,
) -> HotAnswer[R]:
    """The same of rows in memory."""
    return HotAnswer(
        as_of={table: pinned.as_of()},
        newest_us={table: newest_us(pinned)},
        partial=pinned.partial,
        files_read=files_read,
        rows=rows,
        texts=texts,
    )


def newest_us(pinned: Pin[ColdSnapshot]) -> int | None:
    """When the newest row of a pin came, µs; of files alone what they say: its exchange time."""
    newest = pinned.newest_us()
    if newest is not None:
        return newest
    # Files come latest first, those that do not say their times before all.
    times = (file.times_us for file in pinned.snapshot.files)
    return next((known[1] for known in times if known is not None), None)
