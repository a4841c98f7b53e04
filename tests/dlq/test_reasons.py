"""Every reason a dead letter can have is in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from k2.codec.wire import DecodeReason
from k2.dlq.letters import REDRIVEN
from k2.pipeline.rules import Reason
from k2.pipeline.validate import ID_NOT_INTEGER, TOO_LARGE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dead-letters.md").read_text(encoding="utf-8")


def test_every_reason_of_validation_is_documented() -> None:
    codes = {*Reason, *DecodeReason, ID_NOT_INTEGER, TOO_LARGE, REDRIVEN}
    assert {str(code) for code in codes if f"`{code}`" not in PAGE} == set()


def test_every_reason_of_the_source_is_documented() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "k2/sources").glob("*.py"))
    codes = set(re.findall(r'(?:refuse|Refused)\(\s*"([a-z_]+)"', text))
    assert len(codes) > 4
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()
