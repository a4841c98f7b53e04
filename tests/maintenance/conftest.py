from tests.lake.conftest import catalog, lake_settings

__all__ = ["catalog", "lake_settings"]
