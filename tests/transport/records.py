"""Record batches as bytes, the way a broker would hand them out."""

import struct

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

TRANSACTIONAL, CONTROL = 0x10, 0x20


def encode(
    base,
    offsets,
    *,
    values=None,
    keys=None,
    headers=None,
    timestamps=None,
    codec=0,
    last=None,
    attributes=0,
    producer_id=-1,
):
    """One record batch from `base`; `offsets` are absolute and may have holes, `last` too."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, producer_id, 0, 0, 1 << 30)
    for row, offset in enumerate(offsets):
        builder.append(
            offset - base,
            timestamps[row] if timestamps else 1_000 + offset,
            keys[row] if keys else b"k%d" % offset,
            values[row] if values else b"v%d" % offset,
            headers[row] if headers else [],
        )
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, base)
    struct.pack_into(">i", raw, 23, (last if last is not None else offsets[-1]) - base)
    struct.pack_into(">h", raw, 21, struct.unpack_from(">h", raw, 21)[0] | attributes)
    struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[21:])))
    return bytes(raw)


def control(offset, producer_id, *, abort):
    """The marker a broker writes at the end of a transaction."""
    key = struct.pack(">hh", 0, 0 if abort else 1)
    return encode(
        offset,
        [offset],
        keys=[key],
        attributes=TRANSACTIONAL | CONTROL,
        producer_id=producer_id,
    )
