"""`k2 config`: the effective settings, where each came from, secrets masked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
from dotenv import dotenv_values
from pydantic import SecretStr

from k2.setting_files import SUFFIX, file_variables, is_secret
from k2.setting_names import unknown_variables
from k2.setting_types import without_password
from k2.settings import GROUPS, load_settings, variable


def effective() -> list[tuple[str, str, str]]:
    """(variable, value, origin) of every setting; origin: environment, file, .env or default."""
    settings = load_settings()
    dotenv = {name.upper() for name in dotenv_values(".env")} if Path(".env").exists() else set()
    environment = {name.upper() for name in os.environ}
    files = file_variables()
    rows = []
    for name, group in GROUPS.items():
        values = getattr(settings, name)
        for field in group.model_fields:
            key = variable(group, field)
            origin = "environment" if key in environment else ".env" if key in dotenv else "default"
            if is_secret(group.model_fields[field]) and f"{key}{SUFFIX}" in files:
                origin = "file"
            rows.append((key, _shown(getattr(values, field)), origin))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return without_password(str(value))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def config(as_json: bool) -> None:
    """Print the effective settings with their origin; secrets are masked."""
    rows = effective()
    for unknown in unknown_variables():
        click.echo(f"k2: {unknown.message}", err=True)
    if as_json:
        print(json.dumps({key: {"value": value, "origin": origin} for key, value, origin in rows}))
        return
    width = max(len(key) for key, _, _ in rows)
    for key, value, origin in rows:
        print(f"{key:<{width}}  {origin:<11}  {value}")
