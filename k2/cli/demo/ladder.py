"""What `k2 demo degradation` shows: the ladder, each change, each level looked at, the proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from k2.cli.demo.rehearsal import Reply
from k2.degradation.levels import Level

STYLES: Final = ("green", "yellow", "dark_orange", "red", "bold red")
DOES: Final = (
    "everything",
    "everything but enrichment",
    "puts off tier 3",
    "stores tier 1, puts off the rest",
    "puts off everything; the API answers 503",
)


def table(lags: tuple[int, int, int, int]) -> Table:
    """The five levels, from which lag on, and what K2 does at each."""
    shown = Table(title="Degradation levels of this walk", title_justify="left", box=None)
    for column in ("level", "from lag", "what K2 does"):
        shown.add_column(column, justify="right" if column == "from lag" else "left")
    for level, lag in zip(Level, (0, *lags), strict=True):
        shown.add_row(Text(level.name, STYLES[level]), f"{lag:,}", DOES[level])
    return shown


class View:
    """A live line on a terminal, plain lines elsewhere; use it as a context."""

    def __init__(self, console: Console, *, live: bool) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def changed(self, at_s: float, change: Mapping[str, Any]) -> None:
        """A change of level, with its reason."""
        line = Text(f"{at_s:6.1f} s  ")
        line.append(change["before"], STYLES[Level[change["before"]]])
        line.append(" → ")
        line.append(change["after"], STYLES[Level[change["after"]]])
        line.append(f"  {change['reason']}", "dim")
        self._console.print(line, soft_wrap=True)

    def update(self, status: Mapping[str, Any], rate: float) -> None:
        if self._live is not None:
            self._live.update(_panel(status, rate))

    def report(self, status: Mapping[str, Any], shed: Mapping[str, int], reply: Reply) -> None:
        """What a level looks like from outside."""
        level = Level(status["level"])
        put_off = ", ".join(f"tier {tier} {count:,}" for tier, count in sorted(shed.items()))
        line = Text("          ")
        line.append(level.name, STYLES[level])
        line.append(
            f": {DOES[level]}; lag {status['waiting']:,}, "
            f"memory {status['memory']['rss_mb']:,.0f} MB, "
            f"put off so far {put_off or 'nothing'}; /v1/trades: {reply}"
        )
        self._console.print(line, soft_wrap=True)


def _panel(status: Mapping[str, Any], rate: float) -> Panel:
    level = Level(status["level"])
    grid = Table.grid(padding=(0, 2))
    validate = status["validate"]
    grid.add_row("level", Text(level.name, STYLES[level]), DOES[level])
    grid.add_row("market", f"{rate:,.0f}/s", f"{status['source']['frames']:,} messages so far")
    grid.add_row("lag", f"{status['waiting']:,}", f"{validate['records']:,} judged")
    waiting = f"{validate['shed_pending']:,}"
    grid.add_row("put off", waiting, f"{validate['shed_brought']:,} brought since")
    lake = status["lake"]
    grid.add_row("stored", f"{lake['trades'] + lake['quotes']:,}", "")
    grid.add_row("memory", f"{status['memory']['rss_mb']:,.0f} MB", "")
    return Panel(Group(grid), title="K2 under load", border_style=STYLES[level])


def proof(result: Mapping[str, Any]) -> Group:
    """Sent against stored, kind by kind."""
    whole = result["nothing_lost"]
    shown = Table(title="What was sent, and what is in the lake", title_justify="left", box=None)
    names = ("sent", "stored", "missing", "doubled", "unknown")
    for column in ("", *names):
        shown.add_column(column, justify="right" if column else "left")
    for kind, count in result["counts"].items():
        shown.add_row(kind, *(f"{count[name]:,}" for name in names))
    verdict = "Nothing was lost, nothing is there twice." if whole else "NOT what was sent."
    levels = f"Levels seen: {', '.join(result['levels'])}."
    return Group(shown, Text(verdict, "green" if whole else "bold red"), Text(levels, "dim"))
