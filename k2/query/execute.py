"""Run a checked query: rows up to a limit, DuckDB's errors told as what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa

from k2.errors import InvalidParameter, K2Error, LakeError, QueryError, QueryTimeout

#: Arrow bytes of one answer; beyond, it is cut and marked as truncated.
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_READ_ROWS: Final = 10_000

#: How DuckDB's messages begin when the fault is not in the query. Errors met while rows are read
#: reach us as `OSError` with nothing but the message.
_OURS: Final = ("Permission Error", "INTERNAL Error", "FATAL Error")


class EngineError(LakeError):
    """The database failed at a query that should run."""

    code = "engine"


class FileGoneError(LakeError):
    """A data file could not be read; maintenance may have removed it since it was planned."""

    code = "file_gone"


@dataclass(frozen=True, slots=True)
class Result:
    """`truncated`: there were more rows; `cut_short`: the deadline came before all were read."""

    rows: pa.Table
    truncated: bool = False
    cut_short: bool = False


def blames(error: Exception) -> bool:
    """True for what is the fault of the engine or its files, not of the query."""
    return isinstance(error, EngineError | FileGoneError)


def run_checked(
    cursor: duckdb.DuckDBPyConnection, text: str, limit: int, values: Sequence[Any] = ()
) -> Result:
    """Run the query, read at most `limit` rows.

    Raises `InvalidParameter` for a query that cannot run, `QueryTimeout` when interrupted before
    its first rows, `QueryError` above the memory limit, `FileGoneError` when a data file cannot be
    read.
    """
    try:
        executed = cursor.execute(text, list(values)) if values else cursor.execute(text)
        reader = executed.to_arrow_reader(min(limit + 1, _READ_ROWS))
        return _read(reader, limit)
    except (duckdb.Error, OSError, pa.ArrowException) as exc:
        raise translated(exc, None if values else text) from exc


def _read(reader: pa.RecordBatchReader, limit: int) -> Result:
    batches: list[pa.RecordBatch] = []
    count = size = 0
    cut_short = False
    while count <= limit and size <= MAX_ANSWER_BYTES:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            break
        except (duckdb.Error, OSError, pa.ArrowException) as exc:
            if not count or not isinstance(translated(exc), QueryTimeout):
                raise
            cut_short = True
            break
        batches.append(batch)
        count, size = count + batch.num_rows, size + batch.nbytes
    rows = pa.Table.from_batches(batches, schema=reader.schema).slice(0, limit)
    return Result(rows, cut_short or count > limit or size > MAX_ANSWER_BYTES, cut_short)


def translated(exc: Exception, text: str | None = None) -> K2Error:
    """What an error of DuckDB means for whoever asked; `text`: the user's SQL, if it was that."""
    message = str(exc).split("\n\nLINE", 1)[0]
    if message.startswith("INTERRUPT Error"):
        return QueryTimeout("the query was stopped at its deadline")
    if message.startswith(("IO Error", "HTTP Error")):
        return FileGoneError("a data file of the lake cannot be read; the log has the details")
    if message.startswith("Out of Memory Error"):
        return QueryError(
            "the query needs more memory than K2_QUERY_MEMORY_LIMIT_MB allows; aggregate less at "
            "once or narrow the time range"
        )
    if text is None or message.startswith(_OURS):
        return EngineError("the query failed inside the database; the log has the details")
    return InvalidParameter("sql", text[:200], f"a query that runs: {message}")
