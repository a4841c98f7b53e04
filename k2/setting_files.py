"""Secrets in files: `K2_..._FILE` names a file that holds what `K2_...` would.

That is how container platforms hand secrets over, and it keeps them out of the environment, which
children inherit and crash reports print.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from k2.errors import ConfigError

SUFFIX = "_FILE"


def is_secret(field: FieldInfo) -> bool:
    """True for settings whose value is never shown."""
    return field.annotation is SecretStr


def file_variables() -> dict[str, str]:
    """Variables of the environment and the `.env` file that name a file, upper case."""
    dotenv = dotenv_values(".env") if Path(".env").is_file() else {}
    both = {**dotenv, **os.environ}
    return {name.upper(): value for name, value in both.items() if value and SUFFIX in name.upper()}


class SecretFiles(PydanticBaseSettingsSource):
    """The secrets of one group that are given as files. Raises `ConfigError` for a bad one."""

    def __init__(self, group: type[BaseSettings]) -> None:
        super().__init__(group)
        self._prefix = str(group.model_config.get("env_prefix", ""))

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Required by pydantic; `__call__` does the work."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        given = file_variables()
        found: dict[str, Any] = {}
        for name, field in self.settings_cls.model_fields.items():
            variable = f"{self._prefix}{name}".upper()
            file = given.get(f"{variable}{SUFFIX}")
            if is_secret(field) and file:
                found[name] = _read(variable, file)
        return found


def _read(variable: str, file: str) -> str:
    name = f"{variable}{SUFFIX}"
    if os.environ.get(variable):
        raise ConfigError(f"{variable} and {name} are both set; keep one", variable=variable)
    try:
        secret = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigError(
            f"{name}={file!r} cannot be read: {reason}; allowed: a file that holds the secret",
            variable=name,
        ) from exc
    if not secret:
        raise ConfigError(
            f"{name}={file!r} is an empty file; write the secret into it", variable=name
        )
    return secret
