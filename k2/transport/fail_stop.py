"""What follows a batch the log refused stays out, whatever the log would say to it."""

from __future__ import annotations

from faust.types import TP

from k2.errors import LogError


class FailStop:
    """The partitions that refused a batch of this producer.

    A log may refuse one batch and take the next: a full disk has room for a smaller one, a broker
    for one below its limit. Taken, it would hide the loss of the first for good: whoever writes
    that one again, after a restart, writes it behind, and a reader that needs every range to abut
    never gets past.
    """

    def __init__(self) -> None:
        self._refused: dict[TP, BaseException] = {}

    def check(self, tp: TP) -> None:
        """Raises `LogError` when the partition refused a batch before."""
        first = self._refused.get(tp)
        if first is not None:
            raise LogError(
                f"{tp.topic}[{tp.partition}] gets no batch after one it did not take ({first}); "
                "mend what that says and start again: validation writes both anew",
                topic=tp.topic,
                partition=tp.partition,
            ) from first

    def note(self, tp: TP, exc: BaseException) -> None:
        """A batch was refused, or never got there; the first reason stays."""
        self._refused.setdefault(tp, exc)
