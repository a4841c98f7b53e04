from __future__ import annotations

from types import SimpleNamespace

from faust.types import TP

from k2.web.monitor import K2Monitor


def test_events_are_counted_by_topic_and_nothing_grows_for_ever() -> None:
    monitor = K2Monitor()
    tp = TP("market.crypto.trades.binance", 3)
    for offset in range(5):
        message = SimpleNamespace(time_in=None)
        monitor.on_message_in(tp, offset, message)
        monitor.on_stream_event_in(tp, offset, object(), object())
    shown = monitor.asdict()
    assert shown["events_by_topic"] == {tp.topic: 5}
    assert shown["events_total"] == 5
    assert "messages_active" not in shown
    assert not any("object at" in str(key) for key in shown)
