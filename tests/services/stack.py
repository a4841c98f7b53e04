"""Real services the suites share: registry, S3, PostgreSQL and the REST catalog."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from k2.dev.catalog import Catalog
from k2.dev.postgres import Postgres
from k2.dev.process import free_ports, running
from k2.dev.registry import Registry
from k2.dev.s3 import S3
from k2.dev.service import Service
from tests.services.require import require_services

_S = TypeVar("_S", bound=Service)


@contextmanager
def _serving(kind: type[_S], **options: object) -> Iterator[_S]:
    require_services(kind.name)
    with tempfile.TemporaryDirectory(prefix=f"k2-{kind.name}-", ignore_cleanup_errors=True) as made:
        # PostgreSQL runs as another account, which must be able to enter.
        Path(made).chmod(0o755)
        ports = dict(zip(kind.default_ports, free_ports(len(kind.default_ports)), strict=True))
        service = kind(Path(made) / kind.name, ports, **options)
        with running(service):
            yield service


@pytest.fixture(scope="session")
def registry_server() -> Iterator[Registry]:
    """Apicurio, by Confluent's interface; tests use subjects of their own."""
    with _serving(Registry) as service:
        yield service


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """versitygw with the bucket `warehouse`."""
    with _serving(S3) as service:
        yield service


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """PostgreSQL without fsync."""
    with _serving(Postgres, durable=False) as service:
        yield service


@pytest.fixture(scope="session")
def rest_catalog(postgres_server: Postgres, s3_server: S3) -> Iterator[Catalog]:
    """Iceberg's REST catalog over PostgreSQL and S3."""
    with _serving(Catalog, postgres=postgres_server, s3=s3_server) as service:
        yield service
