"""Apicurio Registry 2.6: a schema registry with Confluent's interface, its store in memory."""

from __future__ import annotations

from pathlib import Path

from k2.dev.cache import cached, maven_artifact, run
from k2.dev.process import Launch
from k2.dev.service import Service, answers

VERSION = "2.6.13.Final"
_COORDINATES = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"


def _unpack(into: Path) -> None:
    archive = maven_artifact(_COORDINATES, into, "Apicurio Registry (142 MB)")
    run(["tar", "xzf", str(archive), "-C", str(into)], "Apicurio's archive could not be unpacked")
    archive.unlink()


class Registry(Service):
    """Its schemas are gone when it stops; K2 registers its own again at each start."""

    name = "registry"
    title = f"Apicurio Registry {VERSION}"
    tools = ("java", "mvn")
    default_ports = {"port": 18081}

    @classmethod
    def program(cls) -> Path:
        return cached(f"apicurio-{VERSION}", "app", _unpack)

    def prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def launch(self) -> Launch:
        jar = self.program() / f"apicurio-registry-app-{VERSION}-runner.jar"
        environment = {"QUARKUS_HTTP_HOST": "127.0.0.1", "QUARKUS_HTTP_PORT": str(self.port)}
        # Only the first compiler: on a small machine it starts in half the time.
        options = ["-Xmx256m", "-XX:TieredStopAtLevel=1"]
        return Launch(["java", *options, "-jar", str(jar)], environment)

    @property
    def url(self) -> str:
        """Address of the interface that is Confluent's."""
        return f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    def healthy(self) -> bool:
        return answers(f"{self.url}/subjects")

    def variables(self) -> dict[str, str]:
        return {"K2_KAFKA_SCHEMA_REGISTRY_URL": self.url}
