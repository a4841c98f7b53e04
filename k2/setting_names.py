"""Variables that look like settings of K2 and are none: a misspelt setting has no effect."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dotenv import dotenv_values
from pydantic.fields import FieldInfo

from k2.setting_files import SUFFIX, is_secret
from k2.settings import GROUPS, variable

_PREFIX = "K2_"
#: For the tests' own use, and the older name of K2_SINK_BATCH_SIZE.
_OTHERS = ("K2_TEST_", "K2_CONSUMER_BATCH_SIZE")


class Unknown(NamedTuple):
    """A variable that is no setting, where it is set, and the setting it may have meant."""

    name: str
    origin: str
    nearest: str

    @property
    def message(self) -> str:
        """One line for a person."""
        hint = f"did you mean {self.nearest}?" if self.nearest else "`k2 config` lists them all"
        return f"{self.name} ({self.origin}) is not a setting and has no effect; {hint}"


def known_variables() -> list[str]:
    """Every setting's variable; of a secret also the one that names a file."""
    return [
        name
        for group in GROUPS.values()
        for field, known in group.model_fields.items()
        for name in _names(variable(group, field), known)
    ]


def _names(name: str, field: FieldInfo) -> list[str]:
    return [name, f"{name}{SUFFIX}"] if is_secret(field) else [name]


def unknown_among(names: Iterable[str], origin: str) -> list[Unknown]:
    """Those of `names` that begin like a setting and are none."""
    known = known_variables()
    strange = sorted(
        name
        for name in {name.upper() for name in names} - set(known)
        if name.startswith(_PREFIX) and not name.startswith(_OTHERS)
    )
    nearest = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.7) for name in strange}
    return [Unknown(name, origin, "".join(nearest[name])) for name in strange]


def unknown_variables() -> list[Unknown]:
    """Those of this process's environment and of the `.env` file."""
    dotenv = dotenv_values(".env") if Path(".env").is_file() else {}
    return [*unknown_among(os.environ, "environment"), *unknown_among(dotenv, ".env")]
