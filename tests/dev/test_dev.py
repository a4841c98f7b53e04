"""`k2 dev` as a user runs it, with the two services that start in a second."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from k2.dev import keeper
from k2.dev.process import free_ports
from k2.dev.stack import NAMES, Stack
from tests.services.require import require_services

FAST = ("s3", "postgres")


def k2(*arguments: str, status: int = 0, **environment: str) -> str:
    """The output of a `k2` command that ends with `status`."""
    done = subprocess.run(
        [sys.executable, "-m", "k2.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env={**os.environ, **environment},
    )
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    return output


class Place:
    """A directory for services, with ports of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = dict(zip(FAST, free_ports(len(FAST)), strict=True))

    def dev(self, command: str, *arguments: str, status: int = 0, **environment: str) -> str:
        where = ("--dir", str(self.directory))
        return k2("dev", command, *arguments, *where, status=status, **environment)

    def up(self, *services: str, status: int = 0, **environment: str) -> str:
        ports = [f"--port={name}={self.ports[name]}" for name in services]
        return self.dev("up", *services, *ports, status=status, **environment)

    def states(self, status: int = 0) -> dict[str, str]:
        found = json.loads(self.dev("status", "--json", status=status))
        return {name: state["state"] for name, state in found.items()}

    def keeper_of(self, name: str) -> keeper.Keeper:
        found = keeper.find(Stack.load(self.directory).build()[name])
        assert found is not None
        return found


@pytest.fixture
def place() -> Iterator[Place]:
    require_services(*FAST)
    # Not pytest's: PostgreSQL's account must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="k2-dev-") as directory:
        Path(directory).chmod(0o755)
        made = Place(Path(directory))
        try:
            yield made
        finally:
            made.dev("down")


def wait_gone(*pids: int) -> None:
    _, alive = psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], 10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_up_env_status_down(place: Place) -> None:
    output = place.up(*FAST)
    assert "versitygw" in output
    assert place.states() == {"s3": "healthy", "postgres": "healthy"}
    environment = dict(
        line.removeprefix("export ").split("=", 1) for line in place.dev("env").splitlines()
    )
    assert environment["K2_ICEBERG_S3_ENDPOINT"] == f"http://127.0.0.1:{place.ports['s3']}"
    # Secrets are pointed at, not printed.
    secret = Path(environment["K2_ICEBERG_S3_SECRET_KEY_FILE"])
    assert secret.stat().st_mode & 0o077 == 0
    assert secret.read_text() not in str(environment)
    # The variables are settings that K2 takes.
    shown = json.loads(k2("config", "--json", **environment))
    assert shown["K2_ICEBERG_S3_SECRET_KEY"] == {"value": "********", "origin": "file"}
    assert shown["K2_ICEBERG_WAREHOUSE"]["value"] == "s3://warehouse"
    assert "runs already" in place.up("s3")
    pids = [place.keeper_of(name).service_pid for name in FAST]
    place.dev("down")
    wait_gone(*pids)
    assert place.states(status=1) == {"s3": "stopped", "postgres": "stopped"}
    assert "no service" in place.dev("env", status=2)


def test_data_survive_a_stop(place: Place) -> None:
    place.up("s3")
    before = place.dev("env")
    (place.directory / "s3" / "data" / "warehouse" / "kept").write_text("")
    place.dev("down")
    place.up("s3")
    assert place.dev("env") == before
    assert (place.directory / "s3" / "data" / "warehouse" / "kept").exists()


@pytest.mark.parametrize("victim", ["keeper", "service"])
def test_a_crash_leaves_nothing_behind(place: Place, victim: str) -> None:
    place.up(*FAST)
    found = place.keeper_of("postgres")
    family = [found.pid, *(p.pid for p in psutil.Process(found.pid).children(recursive=True))]
    os.kill(found.pid if victim == "keeper" else found.service_pid, signal.SIGKILL)
    wait_gone(*family)
    assert place.states(status=1) == {"s3": "healthy", "postgres": "stopped"}
    place.up("postgres")
    assert place.states() == {"s3": "healthy", "postgres": "healthy"}


def test_a_cut_off_start_can_be_taken_down(place: Place) -> None:
    command = [sys.executable, "-m", "k2.cli", "dev", "up", "s3", "--dir", str(place.directory)]
    starting = subprocess.Popen([*command, f"--port=s3={place.ports['s3']}"])
    deadline = time.monotonic() + 60
    while not (place.directory / "s3" / "keeper.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    starting.kill()
    starting.wait()
    pid = place.keeper_of("s3").service_pid
    place.dev("down")
    wait_gone(pid)


def test_a_taken_port_is_named_with_the_option_that_moves_it(place: Place) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", place.ports["s3"]))
        other.listen()
        told = place.up("s3", status=2)
    assert f"port {place.ports['s3']} of s3 is taken" in told
    assert "--port s3=N" in told
    assert place.states(status=1) == {}


def test_a_service_that_does_not_start_shows_its_last_words(place: Place) -> None:
    place.up("postgres")
    place.dev("down")
    (place.directory / "postgres" / "data" / "postgresql.conf").write_text("nonsense = here\n")
    told = place.up("postgres", status=1)
    assert "PostgreSQL ended while it started" in told
    assert "nonsense" in told
    assert place.states(status=1)["postgres"] == "stopped"


def test_the_process_of_another_program_is_never_stopped(place: Place) -> None:
    place.up("s3")
    place.dev("down")
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        kept = {"pid": stranger.pid, "started_s": 1.0, "service_pid": stranger.pid}
        (place.directory / "s3" / "keeper.json").write_text(json.dumps(kept))
        assert "did not run" in place.dev("down")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize(
    ("service", "tool"), [("kafka", "java"), ("s3", "go"), ("postgres", "PostgreSQL")]
)
def test_what_is_missing_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str, tool: str
) -> None:
    from k2.dev import tools
    from k2.dev.stack import SERVICES
    from k2.errors import ConfigError

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "_POSTGRES_HOMES", ())
    kind = next(one for one in SERVICES if one.name == service)
    with pytest.raises(ConfigError, match=rf"(?s){tool}.*not found.*install"):
        kind.fetch()


@pytest.mark.parametrize("option", ["s3", "s3=", "s3=0", "s3=70000", "minio=9000", "s3.x=1"])
def test_a_wrong_port_option_says_what_is_allowed(tmp_path: Path, option: str) -> None:
    told = k2("dev", "up", "s3", "--dir", str(tmp_path), "--port", option, status=2)
    assert "SERVICE=PORT" in told or "no port called 'x'" in told


def test_a_torn_stack_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    assert "delete it" in k2("dev", "status", "--dir", str(tmp_path), status=2)


def test_default_ports_do_not_collide() -> None:
    services = Stack(Path("x"), NAMES).build().values()
    ports = [port for service in services for port in service.ports.values()]
    assert len(ports) == len(set(ports))
