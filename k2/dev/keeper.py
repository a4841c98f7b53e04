"""The process that owns one service: `python -m k2.dev.keeper DIR NAME`.

It outlives the command that started it and ends with its service. The service is its child and
ends with it, however it ends, so that nothing is left behind. `keeper.json` beside the service's
data names both; a process id alone could long belong to another program, so the time of its start
counts too.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil

from k2.dev.process import end
from k2.dev.service import Service
from k2.dev.stack import Stack
from k2.errors import ServiceError

_FILE = "keeper.json"
#: Start times are compared in seconds; the kernel counts in hundredths.
_SAME_START_S = 0.05
_STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class Keeper:
    """A keeper process. `started_s`: when it started, seconds since 1970."""

    pid: int
    started_s: float
    service_pid: int

    def process(self) -> psutil.Process | None:
        """The process, if it is still this one."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_s) < _SAME_START_S
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same and alive else None


def find(service: Service) -> Keeper | None:
    """The running keeper of a service."""
    file = service.directory / _FILE
    try:
        keeper = Keeper(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return None  # torn by a crash of the machine: its process is gone as well
    return keeper if keeper.process() is not None else None


def start(service: Service, directory: Path) -> subprocess.Popen[bytes]:
    """Start the keeper of a service of the stack in `directory`, apart from this terminal."""
    with (service.directory / "keeper.log").open("ab") as out:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "k2.dev.keeper", str(directory), service.name],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(service: Service) -> bool:
    """Stop the service of a keeper in good order; False when none ran. Raises `ServiceError`."""
    keeper = find(service)
    process = keeper.process() if keeper is not None else None
    if process is None:
        return False
    process.terminate()
    try:
        process.wait(_STOP_S)
    except psutil.TimeoutExpired as exc:
        raise ServiceError(
            f"{service.title} (process {process.pid}) does not stop; end it with "
            f"kill -9 {process.pid}",
            pid=process.pid,
        ) from exc
    return True


class _ToldToStop(BaseException):
    """Leaves the wait for the child from inside a signal handler."""


def keep(service: Service) -> int:
    """Run a service until it ends or we are told to stop; its status."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _tell)
    child = service.launch().spawn(service.directory, service.log_file)
    me = psutil.Process()
    file = service.directory / _FILE
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(asdict(Keeper(me.pid, me.create_time(), child.pid))))
        partial.rename(file)
        return child.wait()
    except _ToldToStop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        return end(child, service.stop_signal)
    finally:
        file.unlink(missing_ok=True)


def _tell(_number: int, _frame: FrameType | None) -> None:
    raise _ToldToStop


if __name__ == "__main__":
    sys.exit(keep(Stack.load(Path(sys.argv[1])).build()[sys.argv[2]]))
