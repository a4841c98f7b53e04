"""PostgreSQL by the programs the system has: the catalogs' database."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import psycopg2

from k2.dev import tools
from k2.dev.cache import run
from k2.dev.process import Launch
from k2.dev.service import Service, kept_secret
from k2.errors import ConfigError

#: One per kind of catalog: both name their tables alike.
DATABASES = ("k2_catalog", "rest_catalog")
USER = "k2"
#: Whom the server runs as when we are root, which it refuses.
_ACCOUNT = "postgres"


class Postgres(Service):
    """A cluster of its own. `durable`: fsync; tests do without."""

    name = "postgres"
    title = "PostgreSQL"
    default_ports = {"port": 15432}
    # Fast shutdown: do not wait for clients to leave.
    stop_signal = signal.SIGINT

    def __init__(
        self,
        directory: Path,
        ports: Mapping[str, int] | None = None,
        *,
        durable: bool = True,
    ) -> None:
        super().__init__(directory, ports)
        self._durable = durable

    @classmethod
    def missing(cls) -> str:
        return tools.missing_postgres()

    @property
    def _account(self) -> str | None:
        return _ACCOUNT if os.geteuid() == 0 else None

    @property
    def _data(self) -> Path:
        return self.directory.absolute() / "data"

    @property
    def password_file(self) -> Path:
        """The password of `USER`."""
        return self.directory / "password"

    @property
    def password(self) -> str:
        """The password of `USER`, made up at first use."""
        return kept_secret(self.password_file)

    def _program(self, name: str) -> str:
        home = tools.postgres_bin()
        assert home is not None  # `fetch` has looked
        return str(home / name)

    def prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._data.exists():
            return
        partial = self._data.with_name("data.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        if self._account is not None:
            self._hand_over(partial, self._account)
        self._initialise(partial)
        partial.rename(self._data)

    def _hand_over(self, data: Path, account: str) -> None:
        """The server's account must own its data and be able to get there."""
        closed = [path for path in data.parents if not path.stat().st_mode & 0o001]
        if closed:
            raise ConfigError(
                f"PostgreSQL does not run as root but as {account!r}, who cannot enter "
                f"{closed[-1]}; choose another place with --dir, or chmod o+x {closed[-1]}",
                directory=str(closed[-1]),
            )
        try:
            shutil.chown(data, account, account)
        except LookupError as exc:
            raise ConfigError(
                f"PostgreSQL refuses to run as root and there is no account {account!r}; create "
                "it, or run this as another user"
            ) from exc

    def _initialise(self, data: Path) -> None:
        run(
            [
                *(self._program("initdb"), "-D", str(data), "-U", USER, "--no-sync"),
                *("-A", "trust", "-E", "UTF8", "--locale=C"),
            ],
            "PostgreSQL's data directory could not be made",
            cwd=data,
            user=self._account,
        )
        # By a pipe: the password is in no argument and no file the other account could read.
        statements = [
            *(f"create database {name}" for name in DATABASES),
            f"alter role {USER} password '{self.password}'",
        ]
        run(
            [
                *(self._program("postgres"), "--single", "-D", str(data)),
                *("-c", "password_encryption=scram-sha-256", "postgres"),
            ],
            "PostgreSQL's databases could not be made",
            cwd=data,
            user=self._account,
            text="".join(f"{statement}\n" for statement in statements),
        )
        (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")

    def launch(self) -> Launch:
        options = ["-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1"]
        options += ["-c", "unix_socket_directories="]
        if not self._durable:
            options += ["-c", "fsync=off"]
        return Launch(
            [self._program("postgres"), "-D", str(self._data), *options], user=self._account
        )

    def healthy(self) -> bool:
        try:
            psycopg2.connect(
                host="127.0.0.1",
                port=self.port,
                user=USER,
                password=self.password,
                dbname=DATABASES[0],
                connect_timeout=2,
            ).close()
        except psycopg2.OperationalError:
            return False
        return True

    def variables(self) -> dict[str, str]:
        """As K2's own catalog, without a REST server."""
        return {
            "K2_ICEBERG_CATALOG_URI": (
                f"postgresql+psycopg2://{USER}@127.0.0.1:{self.port}/{DATABASES[0]}"
            ),
            "K2_ICEBERG_CATALOG_PASSWORD_FILE": str(self.password_file.absolute()),
        }
