"""What every group of settings has in common: where values come from and how lists are read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from k2.setting_files import SecretFiles

StringList = Annotated[tuple[str, ...], NoDecode]


class Group(BaseSettings):
    """Settings with one prefix; the environment wins over a secret file, that over `.env`."""

    model_config = SettingsConfigDict(
        env_file=".env",
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - theirs, not ours
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The first that has a value wins."""
        return init_settings, env_settings, SecretFiles(settings_cls), dotenv_settings

    @field_validator("*", mode="before")
    @classmethod
    def _split_lists(cls, value: Any, info: Any) -> Any:
        field = cls.model_fields[info.field_name]
        if not isinstance(value, str):
            return value
        if field.annotation == tuple[str, ...]:
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value.strip()
