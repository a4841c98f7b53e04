from tests.query.conftest import platform

__all__ = ["platform"]
