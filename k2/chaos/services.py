"""What the workers talk to: real servers, with a proxy before each that may fail."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pyiceberg.catalog import Catalog, load_catalog

from k2.chaos.brokers import Brokers
from k2.dev.postgres import DATABASES, USER, Postgres
from k2.dev.process import ServiceProcess, free_ports
from k2.dev.registry import Registry
from k2.dev.s3 import S3
from k2.dev.service import Service
from k2.testing.proxy import TcpProxy

SESSION_TIMEOUT_S = 6.0


def _free(kind: type[Service]) -> dict[str, int]:
    names = tuple(kind.default_ports)
    return dict(zip(names, free_ports(len(names)), strict=True))


@dataclass
class Services:
    """Kafka, registry, catalog and store; `environment` points workers at them."""

    directory: Path
    brokers: Brokers | None = None
    registry: TcpProxy | None = None
    catalog: TcpProxy | None = None
    store: TcpProxy | None = None
    environment: dict[str, str] = field(default_factory=dict)
    _postgres: Postgres | None = None
    _s3: S3 | None = None
    _registry: Registry | None = None

    async def start(self, stack: AsyncExitStack, brokers: int) -> None:
        """Start everything; `stack` ends it."""
        self.brokers = Brokers(self.directory / "kafka", brokers)
        stack.callback(self.brokers.kill)
        self._postgres = Postgres(self.directory / "postgres", _free(Postgres), durable=False)
        self._s3 = S3(self.directory / "s3", _free(S3))
        self._registry = Registry(self.directory / "registry", _free(Registry))
        for service in (self._postgres, self._s3, self._registry):
            process = ServiceProcess(service)
            stack.callback(process.kill)
            process.start()  # by the thread that stays: the server ends with it
        await self.brokers.start()
        self.registry = await self._before(stack, self._registry)
        self.catalog = await self._before(stack, self._postgres)
        self.store = await self._before(stack, self._s3)
        self._point_at_them()

    @staticmethod
    async def _before(stack: AsyncExitStack, service: Service) -> TcpProxy:
        return await stack.enter_async_context(TcpProxy(service.port))

    def _point_at_them(self) -> None:
        assert self.brokers
        assert self._postgres
        assert self._s3
        assert self._registry
        assert self.registry
        assert self.catalog
        assert self.store
        made = self._postgres.variables() | self._s3.variables() | self._registry.variables()
        moved = {
            str(self._postgres.port): str(self.catalog.port),
            str(self._s3.port): str(self.store.port),
            str(self._registry.port): str(self.registry.port),
        }
        for name, value in made.items():
            for port, through in moved.items():
                if f"127.0.0.1:{port}" in value:
                    made[name] = value.replace(f"127.0.0.1:{port}", f"127.0.0.1:{through}")
        self.environment |= made
        # In the environment of our own children only.
        named = f"{USER}@127.0.0.1"
        uri = self.environment["K2_ICEBERG_CATALOG_URI"]
        self.environment["K2_ICEBERG_CATALOG_URI"] = uri.replace(
            named, f"{USER}:{self._postgres.password}@127.0.0.1"
        )
        self.environment |= {
            "K2_KAFKA_BOOTSTRAP_SERVERS": self.brokers.bootstrap,
            "K2_KAFKA_REPLICATION": str(self.brokers.replication),
            "K2_KAFKA_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
        }

    @property
    def registry_url(self) -> str:
        """Past the proxy."""
        assert self._registry is not None
        return self._registry.url

    def open_catalog(self) -> Catalog:
        """The lake past the proxies."""
        postgres, s3 = self._postgres, self._s3
        assert postgres is not None
        assert s3 is not None
        return load_catalog(
            "k2",
            type="sql",
            uri=(
                f"postgresql+psycopg2://{USER}:{postgres.password}@127.0.0.1:{postgres.port}/"
                f"{DATABASES[0]}"
            ),
            warehouse=s3.warehouse,
            **{
                "s3.endpoint": s3.endpoint,
                "s3.access-key-id": s3.access_key,
                "s3.secret-access-key": s3.secret_key,
                "s3.region": "us-east-1",
                "s3.path-style-access": "true",
            },
        )


def open_local_catalog(data_dir: Path) -> Catalog:
    """The lake in a data directory."""
    return load_catalog("k2", type="sql", uri=f"sqlite:///{data_dir / 'catalog.db'}")
