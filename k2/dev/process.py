"""Child processes that never outlive us, and the loopback ports they listen on."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from k2.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from k2.dev.service import Service

_PR_SET_PDEATHSIG = 1
POLL_S = 0.1
_STOP_S = 20.0


def die_with_parent() -> None:
    """In a child before exec: have the kernel end it when its parent is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def check_port_free(service: str, name: str, port: int) -> None:
    """Raises `ConfigError` naming service, port and the option that moves it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            option = service if name == "port" else f"{service}.{name}"
            raise ConfigError(
                f"port {port} of {service} is taken by another program ({exc.strerror}); stop it, "
                f"or choose another with --port {option}=N",
                service=service,
                port=port,
            ) from exc


@dataclass(frozen=True, slots=True)
class Launch:
    """How a service's process is started. `user`: run as this user instead of ours."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None

    def spawn(self, directory: Path, log_file: Path) -> subprocess.Popen[bytes]:
        """Start it, its output appended to `log_file`.

        The child ends with the thread that calls this, so call it where that thread stays.
        """
        with log_file.open("ab") as out:
            return subprocess.Popen(  # noqa: S603
                self.command,
                cwd=directory,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
                # After the change of user, which would take the request back.
                preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl only
            )


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> int:
    """Signal, wait, kill when it does not go; its status."""
    process.send_signal(how)
    try:
        return process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class ServiceProcess:
    """A service run by this process. `start`, `stop` and `kill` may be repeated; data stays."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Fetch, prepare, start, and wait until it answers.

        Raises `ConfigError` for what is missing here, `ServiceError` with its last lines when it
        does not start.
        """
        service = self.service
        service.fetch()
        service.prepare()
        self._process = service.launch().spawn(service.directory, service.log_file)
        atexit.register(self.kill)
        try:
            wait_healthy(
                service, lambda: self._process is not None and self._process.poll() is None
            )
        except ServiceError:
            self.kill()
            raise
        return self

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return self._process.pid if self._process is not None else None

    def send(self, how: signal.Signals) -> None:
        """Send a signal, as SIGSTOP and SIGCONT for a service that hangs."""
        if self._process is not None:
            self._process.send_signal(how)

    def stop(self) -> None:
        """Shut down in good order."""
        self._end(self.service.stop_signal)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            end(process, how)
        atexit.unregister(self.kill)


def wait_healthy(service: Service, alive: Callable[[], bool]) -> None:
    """Wait until `service` answers. Raises `ServiceError` when it ended or takes too long.

    `alive`: tells whether its process still runs.
    """
    deadline = time.monotonic() + service.start_timeout_s
    while not service.healthy():
        check_starting(service, alive(), deadline)
        time.sleep(POLL_S)


def check_starting(service: Service, alive: bool, deadline: float) -> None:
    """Raises `ServiceError` with what it printed last when there is nothing left to wait for."""
    if alive and time.monotonic() < deadline:
        return
    how = "did not answer" if alive else "ended while it started"
    raise ServiceError(
        f"{service.title} {how} on port {service.port}; the end of {service.log_file}:\n"
        f"{log_tail(service.log_file)}",
        service=service.name,
        port=service.port,
    )


def log_tail(file: Path, size: int = 2_000) -> str:
    """The end of what a service printed."""
    return file.read_text(errors="replace")[-size:].strip() if file.exists() else "(no output)"


@contextlib.contextmanager
def running(service: Service) -> Iterator[ServiceProcess]:
    """The service, killed at the end."""
    process = ServiceProcess(service)
    try:
        yield process.start()
    finally:
        process.kill()
