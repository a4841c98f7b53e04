"""Iceberg's reference REST catalog, on a loopback address, over PostgreSQL or SQLite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from k2.dev.cache import cached, maven_dependencies, run
from k2.dev.postgres import DATABASES, USER, Postgres
from k2.dev.process import Launch
from k2.dev.s3 import S3
from k2.dev.service import Service, answers

VERSION = "1.11.0"
_JETTY, _HADOOP = "12.1.14", "3.4.3"
_ARTIFACTS = (
    f"org.apache.iceberg:iceberg-core:{VERSION}",
    f"org.apache.iceberg:iceberg-core:{VERSION}:tests",
    f"org.apache.iceberg:iceberg-open-api:{VERSION}:test-fixtures",
    f"org.apache.iceberg:iceberg-aws:{VERSION}",
    f"org.apache.iceberg:iceberg-aws-bundle:{VERSION}",
    f"org.eclipse.jetty.ee10:jetty-ee10-servlet:{_JETTY}",
    f"org.eclipse.jetty.compression:jetty-compression-server:{_JETTY}",
    f"org.eclipse.jetty.compression:jetty-compression-gzip:{_JETTY}",
    f"org.apache.hadoop:hadoop-client-api:{_HADOOP}",
    f"org.apache.hadoop:hadoop-client-runtime:{_HADOOP}",
    "org.xerial:sqlite-jdbc:3.53.4.0",
    "org.postgresql:postgresql:42.7.4",
    "org.slf4j:slf4j-simple:2.0.17",
)
# The reference server's own main listens on every address and has no password. The properties come
# from a file: arguments can be read by everybody on the machine.
_MAIN = """
import java.net.InetSocketAddress;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.rest.RESTCatalogAdapter;
import org.apache.iceberg.rest.RESTCatalogServlet;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;

public class RestCatalog {
  public static void main(String[] arguments) throws Exception {
    Properties file = new Properties();
    try (var in = new java.io.FileInputStream(arguments[1])) { file.load(in); }
    Map<String, String> properties = new HashMap<>();
    file.forEach((key, value) -> properties.put((String) key, (String) value));
    var catalog = CatalogUtil.buildIcebergCatalog("k2", properties, new Configuration());
    var handler = new ServletContextHandler(ServletContextHandler.NO_SESSIONS);
    var servlet = new RESTCatalogServlet(new RESTCatalogAdapter(catalog));
    handler.addServlet(new ServletHolder(servlet), "/*");
    var server = new Server(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])));
    server.setHandler(handler);
    server.start();
    server.join();
  }
}
"""


def _dependency(coordinates: str) -> str:
    group, artifact, version, *classifier = coordinates.split(":")
    extra = f"<classifier>{classifier[0]}</classifier>" if classifier else ""
    return (
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        f"<version>{version}</version>{extra}</dependency>"
    )


def _pom() -> str:
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>k2</groupId><artifactId>catalog</artifactId><version>1</version><dependencies>"
        f"{''.join(map(_dependency, _ARTIFACTS))}</dependencies></project>"
    )


def _fetch(into: Path) -> None:
    maven_dependencies(_pom(), into, "the Iceberg REST catalog (144 MB in 45 files)")


def _compile(into: Path) -> None:
    source = into / "RestCatalog.java"
    source.write_text(_MAIN, encoding="utf-8")
    run(
        ["javac", "-cp", f"{Catalog.libs()}/*", "-d", str(into), str(source)],
        "the REST catalog's main class could not be compiled",
    )


class Catalog(Service):
    """The catalog. `postgres`, `s3`: where it keeps tables and files; None: below `directory`."""

    name = "catalog"
    title = f"Iceberg REST catalog {VERSION}"
    tools = ("java", "javac", "mvn")
    default_ports = {"port": 18181}
    needs = frozenset((Postgres.name, S3.name))

    def __init__(
        self,
        directory: Path,
        ports: Mapping[str, int] | None = None,
        *,
        postgres: Postgres | None = None,
        s3: S3 | None = None,
    ) -> None:
        super().__init__(directory, ports)
        self._postgres = postgres
        self._s3 = s3

    @staticmethod
    def libs() -> Path:
        """The directory of its jars."""
        return cached(f"iceberg-rest-{VERSION}", "libs", _fetch)

    @classmethod
    def program(cls) -> Path:
        cls.libs()
        return cached(f"iceberg-rest-{VERSION}-main", "classes", _compile)

    @property
    def _properties_file(self) -> Path:
        return self.directory / "catalog.properties"

    def prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._properties_file.touch(mode=0o600)
        lines = [f"{name}={value}" for name, value in self._properties().items()]
        self._properties_file.write_text("\n".join([*lines, ""]), encoding="utf-8")

    def _properties(self) -> dict[str, str]:
        return {
            "catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog",
            "jdbc.schema-version": "V1",
            **self._database(),
            **self._files(),
        }

    def _database(self) -> dict[str, str]:
        if self._postgres is None:
            return {"uri": f"jdbc:sqlite:{self.directory.absolute() / 'catalog.db'}"}
        return {
            "uri": f"jdbc:postgresql://127.0.0.1:{self._postgres.port}/{DATABASES[1]}",
            "jdbc.user": USER,
            "jdbc.password": self._postgres.password,
        }

    def _files(self) -> dict[str, str]:
        if self._s3 is None:
            return {
                "io-impl": "org.apache.iceberg.hadoop.HadoopFileIO",
                "warehouse": self._local_warehouse,
            }
        return {
            "io-impl": "org.apache.iceberg.aws.s3.S3FileIO",
            "warehouse": self._s3.warehouse,
            "s3.endpoint": self._s3.endpoint,
            "s3.path-style-access": "true",
            "s3.access-key-id": self._s3.access_key,
            "s3.secret-access-key": self._s3.secret_key,
            "client.region": "us-east-1",
        }

    @property
    def _local_warehouse(self) -> str:
        return (self.directory.absolute() / "warehouse").as_uri()

    @property
    def url(self) -> str:
        """For clients."""
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> Launch:
        options = ["-Xmx256m", "-XX:TieredStopAtLevel=1"]
        options += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        path = f"{self.program()}:{self.libs()}/*"
        arguments = [str(self.port), str(self._properties_file.absolute())]
        return Launch(["java", *options, "-cp", path, "RestCatalog", *arguments])

    def healthy(self) -> bool:
        return answers(f"{self.url}/v1/config")

    def variables(self) -> dict[str, str]:
        found = {"K2_ICEBERG_CATALOG_URI": self.url}
        if self._s3 is None:
            found["K2_ICEBERG_WAREHOUSE"] = self._local_warehouse
        return found
