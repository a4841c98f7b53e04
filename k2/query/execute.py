"""Run a checked query: rows up to a limit, DuckDB's errors told as what they mean."""

from __future__ import annotations

from typing import Final

import duckdb
import pyarrow as pa

from k2.errors import InvalidParameter, K2Error, LakeError, QueryError, QueryTimeout
from k2.query.sql import CheckedSql

#: Arrow bytes of one answer; beyond, it is cut and marked as truncated.
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_READ_ROWS: Final = 10_000

#: How DuckDB's messages begin when the fault is not in the query. Errors met while rows are read
#: reach us as `OSError` with nothing but the message.
_OURS: Final = ("Permission Error", "INTERNAL Error", "FATAL Error")


class FileGoneError(LakeError):
    """A data file could not be read; maintenance may have removed it since it was planned."""

    code = "file_gone"


def run_checked(
    cursor: duckdb.DuckDBPyConnection, checked: CheckedSql, limit: int
) -> tuple[pa.Table, bool]:
    """Run the query, read at most `limit` rows; True when there were more.

    Raises `InvalidParameter` for a query that cannot run, `QueryTimeout` when interrupted,
    `QueryError` above the memory limit, `FileGoneError` when a data file cannot be read.
    """
    try:
        reader = cursor.execute(checked.text).to_arrow_reader(min(limit + 1, _READ_ROWS))
        batches: list[pa.RecordBatch] = []
        count = size = 0
        while count <= limit and size <= MAX_ANSWER_BYTES:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            batches.append(batch)
            count, size = count + batch.num_rows, size + batch.nbytes
        table = pa.Table.from_batches(batches, schema=reader.schema)
    except (duckdb.Error, OSError, pa.ArrowException) as exc:
        raise translated(exc, checked.text) from exc
    return table.slice(0, limit), count > limit or size > MAX_ANSWER_BYTES


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
        return LakeError("the query failed inside the database; the log has the details")
    return InvalidParameter("sql", text[:200], f"a query that runs: {message}")
