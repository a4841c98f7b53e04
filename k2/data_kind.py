"""What a data directory holds. Simulated trades are never put where an exchange's are."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from k2.errors import ConfigError
from k2.setting_feeds import Feed
from k2.settings import Settings

SIMULATED: Final = "simulated"
REAL: Final = "real"
#: Says which of the two a data directory holds.
MARKER: Final = "MARKET"
#: Where a simulated market is kept (`k2 exchange simulate --state`), beside its data.
SIMULATOR_STATE: Final = "simulator.json"
#: What a data directory has in it once a worker has run there.
_TRACES: Final = ("log", "catalog.db")
#: Where a simulator is at home.
_OWN_HOSTS: Final = ("127.0.0.1", "localhost", "::1")


def data_dir(asked: Path | None, setting: Path, market: str) -> Path:
    """The directory asked for, else the setting's, or its part for simulated data."""
    if asked is not None:
        return asked.resolve()
    return (setting / SIMULATED if market == SIMULATED else setting).resolve()


def held(directory: Path) -> str | None:
    """What the directory holds: its marker, `real` for data without one, None for nothing."""
    try:
        return (directory / MARKER).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if (directory / SIMULATOR_STATE).exists():
            return SIMULATED
        return REAL if any((directory / trace).exists() for trace in _TRACES) else None
    except OSError as exc:
        raise ConfigError(f"the data directory {directory} cannot be read: {exc}") from exc


def claim(directory: Path, market: str) -> None:
    """Mark the directory. Raises `ConfigError` when it holds data of the other kind."""
    found = held(directory)
    if found is not None and found != market:
        raise ConfigError(
            f"the data directory {directory} holds {found} market data, and {market} data must not "
            "be mixed with it; give another --data-dir (or none: simulated data has its own)",
            directory=str(directory),
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MARKER).write_text(f"{market}\n", encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"the data directory {directory} cannot be written ({exc.strerror}); give another "
            "--data-dir, or set K2_DATA_DIR"
        ) from exc


def check_feed(settings: Settings) -> None:
    """Raises `ConfigError` when a worker would add an exchange's trades to simulated ones."""
    directory = settings.core.data_dir
    if not settings.embedded or "source" not in settings.core.roles or held(directory) != SIMULATED:
        return
    for name in settings.core.exchanges:
        feed: Feed = getattr(settings, name)
        if not feed.enabled or urlsplit(feed.url).hostname in _OWN_HOSTS:
            continue
        variable = f"K2_{name.upper()}_URL"
        raise ConfigError(
            f"K2_DATA_DIR={str(directory)!r} holds simulated market data and "
            f"{variable}={feed.url!r} is an exchange; give them separate directories, or set "
            f"{variable} to the simulator's",
            variable="K2_DATA_DIR",
        )
