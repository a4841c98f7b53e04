"""A worker with a lake of its own, that reads an exchange server of this machine.

Demos, benchmarks and drills start one: whatever log, registry, catalog and exchange the
surroundings configure, its made-up trades stay in its directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from k2.settings import Settings

#: No service of the surroundings: log, registry, catalog and store are in the data directory.
EMBEDDED: Final = {
    "K2_KAFKA_BOOTSTRAP_SERVERS": "",
    "K2_KAFKA_SCHEMA_REGISTRY_URL": "",
    "K2_ICEBERG_CATALOG_URI": "",
    "K2_ICEBERG_WAREHOUSE": "",
}


def own_worker(data: Path, api_port: int, binance: str, symbols: Iterable[str]) -> dict[str, str]:
    """Environment of the worker: everything below `data`, fed by the server at `binance` (URL)."""
    return {
        "K2_DATA_DIR": str(data),
        "K2_API_PORT": str(api_port),
        "K2_EXCHANGES": "binance",
        "K2_BINANCE_ENABLED": "true",
        "K2_BINANCE_URL": binance,
        "K2_BINANCE_FAILOVER_URLS": "",
        "K2_BINANCE_SYMBOLS": ",".join(symbols),
        # What was missed is to be seen, not mended.
        "K2_BINANCE_BACKFILL": "false",
        **EMBEDDED,
    }


def own_lake(settings: Settings, data: Path) -> Settings:
    """`settings` for reading that worker's lake."""
    core = settings.core.model_copy(update={"data_dir": data})
    iceberg = settings.iceberg.model_copy(update={"catalog_uri": "", "warehouse": ""})
    return settings.model_copy(update={"core": core, "iceberg": iceberg})
