"""Apache Kafka from Maven jars: one node, broker and controller in one process."""

from __future__ import annotations

import base64
import contextlib
import uuid
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from k2.dev.cache import cached, maven_dependencies, run
from k2.dev.certificates import Certificates, make_certificates
from k2.dev.process import Launch
from k2.dev.service import Service, kept_secret

VERSION = "3.9.1"
USER = "k2"
MECHANISM = "SCRAM-SHA-512"

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>k2</groupId><artifactId>kafka</artifactId>
<version>1</version><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{VERSION}</version></dependency>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId>
<version>{VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-reload4j</artifactId>
<version>1.7.36</version></dependency>
</dependencies></project>
"""

_LOG4J = """log4j.rootLogger=WARN, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d %p %c %m%n
"""


def new_cluster_id() -> str:
    """A random one, as Kafka's own: 16 bytes in base64."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


class Kafka(Service):
    """A broker. `secure`: clients come by SASL_SSL (SCRAM-SHA-512), by a certificate of our own."""

    name = "kafka"
    title = f"Kafka {VERSION}"
    tools = ("java", "mvn")
    default_ports = {"port": 19092, "controller": 19093, "internal": 19094}

    def __init__(
        self,
        directory: Path,
        ports: Mapping[str, int] | None = None,
        *,
        heap: str = "512m",
        secure: bool = False,
    ) -> None:
        super().__init__(directory, ports)
        self._heap = heap
        self.secure = secure

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def password_file(self) -> Path:
        """The password of `USER`, when secure."""
        return self.directory / "password"

    @property
    def certificates(self) -> Certificates:
        """Of the secure broker; made when missing."""
        return make_certificates(self.directory / "tls")

    @classmethod
    def program(cls) -> Path:
        return cached(
            f"kafka-{VERSION}", "libs", lambda into: maven_dependencies(_POM, into, "Kafka")
        )

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"

    def prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "log4j.properties").write_text(_LOG4J)
        self._properties.touch(mode=0o600)
        self._properties.write_text("\n".join([*self._settings(), ""]))
        if not (self.directory / "data" / "meta.properties").exists():
            self._format()

    def _format(self) -> None:
        # One word with its option: an id may begin with a dash.
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster_id()}"]
        tool += ["-c", str(self._properties)]
        if self.secure:
            password = kept_secret(self.password_file)
            tool += ["--add-scram", f"{MECHANISM}=[name={USER},password={password}]"]
        run([*self._java(), *tool], "Kafka's storage could not be formatted")

    def _cluster_id(self) -> str:
        return new_cluster_id()

    def _java(self) -> list[str]:
        log4j = (self.directory / "log4j.properties").absolute().as_uri()
        return ["java", f"-Dlog4j.configuration={log4j}", "-cp", f"{self.program()}/*"]

    def launch(self) -> Launch:
        return Launch([*self._java(), f"-Xmx{self._heap}", "kafka.Kafka", str(self._properties)])

    def _settings(self) -> list[str]:
        controller = f"127.0.0.1:{self.ports['controller']}"
        return [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@{controller}",
            "controller.listener.names=CONTROLLER",
            *(self._secure_listeners(controller) if self.secure else self._listeners(controller)),
            f"log.dirs={self.directory.absolute() / 'data'}",
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=4",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.num.partitions=4",
            "transaction.state.log.min.isr=1",
            "group.initial.rebalance.delay.ms=0",
            "group.min.session.timeout.ms=1000",
            "auto.create.topics.enable=false",
            "log.cleaner.backoff.ms=200",
            "log.retention.check.interval.ms=500",
        ]

    def _listeners(self, controller: str) -> list[str]:
        return [
            f"listeners=PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}",
            f"advertised.listeners=PLAINTEXT://{self.bootstrap}",
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        ]

    def _secure_listeners(self, controller: str) -> list[str]:
        made, internal = self.certificates, f"127.0.0.1:{self.ports['internal']}"
        login = "org.apache.kafka.common.security"
        password = kept_secret(self.password_file)
        scram = f"{login}.scram.ScramLoginModule required;"
        plain = f'{login}.plain.PlainLoginModule required user_{USER}="{password}";'
        return [
            f"listeners=CLIENT://{self.bootstrap},BROKER://{internal},CONTROLLER://{controller}",
            f"advertised.listeners=CLIENT://{self.bootstrap},BROKER://{internal}",
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,BROKER:PLAINTEXT,CLIENT:SASL_SSL",
            "inter.broker.listener.name=BROKER",
            f"listener.name.client.sasl.enabled.mechanisms={MECHANISM},PLAIN",
            f"listener.name.client.scram-sha-512.sasl.jaas.config={scram}",
            f"listener.name.client.plain.sasl.jaas.config={plain}",
            "listener.name.client.ssl.keystore.type=PEM",
            f"listener.name.client.ssl.keystore.location={made.server.absolute()}",
            "listener.name.client.ssl.truststore.type=PEM",
            f"listener.name.client.ssl.truststore.location={made.ca.absolute()}",
            "listener.name.client.ssl.client.auth=requested",
        ]

    def healthy(self) -> bool:
        # By the listener without a password: what is asked is whether the broker serves.
        port = self.ports["internal"] if self.secure else self.port
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})
        with contextlib.suppress(KafkaException):
            admin.list_topics(timeout=1.0)
            return True
        return False

    def variables(self) -> dict[str, str]:
        found = {"K2_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap}
        if self.secure:
            found |= {
                "K2_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
                "K2_KAFKA_SASL_MECHANISM": MECHANISM,
                "K2_KAFKA_SASL_USERNAME": USER,
                "K2_KAFKA_SASL_PASSWORD_FILE": str(self.password_file.absolute()),
                "K2_KAFKA_SSL_CA_FILE": str(self.certificates.ca.absolute()),
            }
        return found
