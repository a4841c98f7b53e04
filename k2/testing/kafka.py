"""A real Kafka broker for tests and benchmarks, from Maven jars, without Docker.

One node (KRaft, broker and controller in one process) on loopback ports, its log in a directory
of its own. The process ends with ours, also when ours is killed.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from k2.errors import ConfigError, LogError

VERSION = "3.9.1"
_START_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1

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


def missing_tools() -> str:
    """Why no broker can be started here and what to do; empty when one can."""
    tools = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if not tools:
        return ""
    return (
        f"{' and '.join(tools)} not found: a real Kafka needs Java 17 and Maven "
        "(Debian: apt-get install openjdk-17-jre-headless maven)"
    )


def cache_dir() -> Path:
    """Where the jars are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "k2" / f"kafka-{VERSION}"


def fetch_jars() -> Path:
    """The directory of Kafka's jars, downloaded by Maven at first use."""
    if reason := missing_tools():
        raise ConfigError(reason)
    home = cache_dir()
    libs = home / "libs"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may start together
        if not libs.is_dir():
            (home / "pom.xml").write_text(_POM)
            partial = home / "libs.partial"
            shutil.rmtree(partial, ignore_errors=True)
            _run(
                [
                    *("mvn", "-q", "-B", "-f", str(home / "pom.xml")),
                    *("dependency:copy-dependencies", f"-DoutputDirectory={partial}"),
                ],
                "Maven did not fetch Kafka's jars; see its settings for mirrors and proxies",
            )
            partial.rename(libs)
    return libs


def _run(command: list[str], failure: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ConfigError(f"{failure}: {(done.stdout + done.stderr).strip()[-2000:]}")


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def die_with_parent() -> None:
    """In a child before exec: have the kernel end it when its parent is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class KafkaServer:
    """A broker process. `start`, `stop` and `kill` may be repeated; ports and log stay.

    On Linux the broker ends with the thread that called `start`.
    """

    def __init__(self, directory: Path, *, heap: str = "512m") -> None:
        self.directory = directory
        self._heap = heap
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self._controller_port = free_ports(2)

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def log_file(self) -> Path:
        """What the broker printed."""
        return self.directory / "kafka.log"

    def start(self) -> Self:
        """Start and wait until it answers. Raises `LogError` with its last lines otherwise."""
        libs = fetch_jars()
        if not (self.directory / "server.properties").exists():
            self._prepare(libs)
        with self.log_file.open("ab") as out:
            self._process = subprocess.Popen(  # noqa: S603
                [*self._java(libs), f"-Xmx{self._heap}", "kafka.Kafka", self._properties],
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl only, before any thread
            )
        atexit.register(self.kill)
        self._wait_until_ready()
        return self

    @property
    def _properties(self) -> str:
        return str(self.directory / "server.properties")

    def _java(self, libs: Path) -> list[str]:
        log4j = (self.directory / "log4j.properties").as_uri()
        return ["java", f"-Dlog4j.configuration={log4j}", "-cp", f"{libs}/*"]

    def _prepare(self, libs: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "log4j.properties").write_text(_LOG4J)
        Path(self._properties).write_text(self._server_properties())
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", self._properties]
        _run([*self._java(libs), *tool], "Kafka's storage could not be formatted")

    def _server_properties(self) -> str:
        plain, controller = self.bootstrap, f"127.0.0.1:{self._controller_port}"
        return "\n".join(
            [
                "process.roles=broker,controller",
                "node.id=1",
                f"controller.quorum.voters=1@{controller}",
                f"listeners=PLAINTEXT://{plain},CONTROLLER://{controller}",
                f"advertised.listeners=PLAINTEXT://{plain}",
                "controller.listener.names=CONTROLLER",
                "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
                f"log.dirs={self.directory / 'data'}",
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
                "",
            ]
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        while True:
            with contextlib.suppress(KafkaException):
                admin.list_topics(timeout=1.0)
                return
            process = self._process
            if process is None or process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = self.log_file.read_text(errors="replace")[-2000:]
                raise LogError(f"Kafka {VERSION} did not start on {self.bootstrap}: {tail}")

    def stop(self) -> None:
        """Shut down in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        atexit.unregister(self.kill)


@contextlib.contextmanager
def running_kafka(*, heap: str = "512m") -> Iterator[KafkaServer]:
    """A broker with an empty log, stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="k2-kafka-", ignore_cleanup_errors=True) as directory:
        server = KafkaServer(Path(directory), heap=heap)
        try:
            yield server.start()
        finally:
            server.kill()
