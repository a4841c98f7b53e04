"""Acks of one partition: which offset may be committed.

Faust lists acked offsets one by one and looks for consecutive runs; a batch shows only its last
offset there, so the list splits at every batch, grows for ever and can commit past an unacked one.
Here a delivery is a range. Committable is the end of the acked prefix of what was delivered.
"""

from __future__ import annotations

from collections import OrderedDict

from k2.errors import LogError


class AckTracker:
    """Deliveries of one partition since its position was last set.

    Memory is one entry per delivery that is not acked yet, whatever order acks come in.
    """

    __slots__ = ("_end", "_next_ticket", "_open", "_start")

    def __init__(self, position: int | None = None) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()  # ticket -> first offset
        self._start = self._end = position
        self._next_ticket = 0

    @property
    def end(self) -> int | None:
        """The offset the next delivery starts at; None before the first one."""
        return self._end

    @property
    def pending(self) -> int:
        """Deliveries that are not acked."""
        return len(self._open)

    def seek(self, position: int | None) -> None:
        """Forget what was delivered; acks of it count no more, even if it is delivered again."""
        self._open.clear()
        self._start = self._end = position

    def add(self, first: int, last: int) -> int:
        """Note the delivery of offsets `first..last` and return its ticket.

        Raises `LogError` when the range does not start where the last one ended: what lies
        between would be committed without having been delivered.
        """
        if last < first or (self._end is not None and first != self._end):
            raise LogError(
                f"delivery of offsets {first}..{last} does not follow {self._end}, the end of the "
                "one before; the reader's position moved without a seek",
                first=first,
                last=last,
                expected=self._end,
            )
        if self._start is None:
            self._start = first
        ticket = self._next_ticket
        self._next_ticket += 1
        self._open[ticket] = first
        self._end = last + 1
        return ticket

    def ack(self, ticket: int) -> bool:
        """Mark a delivery as done; False when it was acked or forgotten before."""
        return self._open.pop(ticket, None) is not None

    def committable(self) -> int | None:
        """The offset up to which all is acked (exclusive); None when there is no progress."""
        end = next(iter(self._open.values())) if self._open else self._end
        return None if end == self._start else end
