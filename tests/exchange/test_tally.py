"""What an exchange says it sent."""

from k2.exchange.capture import Frame
from k2.exchange.tally import Tally

STREAM = "btcusdt@trade"


def frames(*ids: int) -> list[Frame]:
    return [Frame(0, STREAM, b'{"e":"trade","t":%d,"p":"1"}' % ident) for ident in ids]


def test_every_id_is_kept_where_asked_however_short_the_ring() -> None:
    tally = Tally(2, keep_ids=True)
    for ident in (7, 5, 9, 5):
        tally.add(frames(ident)[0], sent_ns=ident)
    tally.add_all(frames(11), [None], 0)
    stream = tally.streams[STREAM]
    assert list(stream.ids or ()) == [7, 5, 9, 5]
    assert (stream.count, stream.first_id, stream.last_id) == (5, 5, 9)
    assert tally.sends_of(STREAM) == [(9, 9), (5, 5)]


def test_no_ids_are_kept_otherwise() -> None:
    tally = Tally()
    tally.add(frames(1)[0], 0)
    assert tally.streams[STREAM].ids is None
