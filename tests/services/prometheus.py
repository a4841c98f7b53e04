"""A real Prometheus that scrapes a worker, and promtool."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from k2.dev.process import free_ports
from tests.services.require import require_programs

RULES = sorted(Path("deploy/prometheus/rules").absolute().glob("*.yml"))


class Prometheus:
    """The server's HTTP interface."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def get(self, path: str, **params: str) -> Any:
        """The JSON answer's `data`; a refusal is raised with Prometheus's own words."""
        url = f"{self.base}{path}?{urllib.parse.urlencode(params)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return orjson.loads(answer.read())["data"]
        except urllib.error.HTTPError as exc:
            raise AssertionError(f"{params}: {exc.read().decode()}") from exc

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series of an instant query, now."""
        return self.get("/api/v1/query", query=expression)["result"]

    def wait(self, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.base}/-/ready", timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError("Prometheus did not become ready")


@contextmanager
def running_prometheus(directory: Path, *targets: str) -> Iterator[Prometheus]:
    """Scrape `targets` every second as job `k2`, with K2's rules loaded."""
    require_programs("prometheus", "prometheus")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": [{"job_name": "k2", "static_configs": [{"targets": list(targets)}]}],
    }
    # JSON is YAML.
    file = directory / "prometheus.yml"
    file.write_bytes(orjson.dumps(config))
    (port,) = free_ports(1)
    command = ["prometheus", f"--config.file={file}", f"--web.listen-address=127.0.0.1:{port}"]
    command += [f"--storage.tsdb.path={directory / 'tsdb'}", "--log.level=warn"]
    with (directory / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        server = Prometheus(port)
        server.wait()
        yield server
    finally:
        process.terminate()
        process.wait(20)
