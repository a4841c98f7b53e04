"""Cursors: the same in every process that answers the same question."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from k2.errors import InvalidParameter
from k2.query.filters import Key
from k2.web import cursor

QUESTION = "{'symbols': frozenset(['AAAUSDT', 'BBBUSDT', 'CCCUSDT', 'DDDUSDT']), 'order': 'asc'}"


def digest_with(seed: str) -> str:
    code = f"from k2.web.cursor import digest; print(digest({QUESTION}))"
    env = {**os.environ, "PYTHONHASHSEED": seed}
    made = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    return made.stdout.decode()


def test_a_digest_is_the_same_in_every_process() -> None:
    assert digest_with("1") == digest_with("2")


def test_a_cursor_belongs_to_its_symbols() -> None:
    key = Key(1, 2, 3, "topic", "epoch")
    made = cursor.encode({"symbols": frozenset({"A", "B"})}, key)
    assert cursor.decode(made, {"symbols": frozenset({"B", "A"})})[0] == key
    with pytest.raises(InvalidParameter):
        cursor.decode(made, {"symbols": frozenset({"A", "C"})})
