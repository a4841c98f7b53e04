"""`k2 up`: one worker and the embedded parts around it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from k2.settings import load_settings

#: Faust's names of our levels.
_FAUST_LEVELS = {"DEBUG": "debug", "INFO": "info", "WARNING": "warn", "ERROR": "error"}


def worker_command() -> list[str]:
    """The production entry `faust -A k2.app worker`, run by this very interpreter."""
    level = _FAUST_LEVELS[load_settings().core.log_level]
    # -P: a folder named k2 below the working directory must not hide the package.
    return [sys.executable, "-P", "-m", "faust", "-A", "k2.app", "worker", "-l", level]


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="As K2_DATA_DIR.")
def up(data_dir: Path | None) -> None:
    """Run one worker; without K2_KAFKA_BOOTSTRAP_SERVERS the log is embedded."""
    if data_dir is not None:
        os.environ["K2_DATA_DIR"] = str(data_dir.resolve())
    command = worker_command()
    os.execv(command[0], command)  # noqa: S606 - the worker takes this process's place
