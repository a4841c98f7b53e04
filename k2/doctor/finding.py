"""What one look found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from k2.errors import K2Error

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`detail`: what was seen; `remedy`: what to do, when something should be done."""

    check: str
    state: State
    detail: str
    remedy: str = ""


#: One look: blocking, and free to raise `K2Error`.
Look = Callable[[], list[Finding]]


@contextmanager
def judged(check: str, remedy: str, findings: list[Finding]) -> Iterator[None]:
    """A `K2Error` inside becomes a finding: the looks after it go on."""
    try:
        yield
    except K2Error as exc:
        findings.append(Finding(check, "failed", exc.message, remedy))


def run(looks: dict[str, tuple[Look, str]]) -> list[Finding]:
    """Every look in order. `looks`: check -> (look, remedy when it raises)."""
    findings: list[Finding] = []
    for check, (look, remedy) in looks.items():
        with judged(check, remedy, findings):
            findings += look()
    return findings
