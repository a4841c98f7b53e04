"""Reference data in a global table: written where it is validated, known on every worker.

An entry is one statement under its message id, and none is ever changed: what is written again
after a crash is the same, and it does not matter which worker wrote first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from k2.codec.avro import Codec
from k2.decimals import DECIMAL, to_decimal
from k2.query.instruments import STATEMENT
from k2.records import LAKE_REFERENCE
from k2.transport.batch import OutBatch
from k2.transport.single import confirmed, failure

#: Entries handed on before others have their turn on the loop.
_TURN: Final = 50
_STATED: Final = pa.schema([LAKE_REFERENCE.field(name) for name in STATEMENT])


class ReferenceTable:
    """The table of `tables.reference`; `codec` reads records of any log of reference data."""

    def __init__(self, table: Any, codec: Codec) -> None:
        self._table = table
        self._codec = codec

    def __len__(self) -> int:
        """How many statements there are; none ever leaves."""
        return len(self._table.data)

    async def put(self, outputs: Sequence[OutBatch]) -> asyncio.Future[int]:
        """Write what was validated; the future is done once the log has all of it."""
        values = [value for out in outputs for value in out.values if value is not None]
        decoded = await asyncio.to_thread(self._codec.decode, values)
        keys = decoded.batch.column("message_id").to_pylist()
        sent = []
        for number, (row, key) in enumerate(zip(decoded.rows.tolist(), keys, strict=True), start=1):
            self._table.data[key.encode()] = values[row]
            one = self._table.send_changelog(0, key.encode(), values[row])
            one.add_done_callback(failure)
            sent.append(one)
            if number % _TURN == 0:
                await asyncio.sleep(0)
        return asyncio.ensure_future(self._confirmed(sent))

    async def _confirmed(self, sent: list[Any]) -> int:
        await confirmed(self._table.app.producer, sent)
        return len(sent)

    def statements(self) -> pa.Table:
        """What is known now, with the columns of `STATEMENT`. Blocking; a copy."""
        batch = self._codec.decode(list(self._table.data.values())).batch
        columns = [
            to_decimal(batch.column(field.name), field.name)
            if field.type == DECIMAL
            else batch.column(field.name).cast(field.type)
            for field in _STATED
        ]
        return pa.Table.from_arrays(columns, schema=_STATED)
