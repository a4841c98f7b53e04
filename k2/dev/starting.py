"""Several services started together, each as soon as those it needs answer."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

from k2.dev import keeper
from k2.dev.process import POLL_S, check_starting
from k2.dev.service import Service
from k2.dev.stack import Stack
from k2.errors import ServiceError


class Starting:
    """`services`: prepared, not running. `run` prints a line as each begins to answer."""

    def __init__(self, services: Sequence[Service], stack: Stack) -> None:
        self._stack = stack
        self._waiting = list(services)
        self._begun: dict[str, subprocess.Popen[bytes]] = {}
        self._services = list(services)
        self._started_s = time.monotonic()

    def run(self) -> None:
        """Raises `ServiceError` when one does not start."""
        while self._waiting:
            for service in list(self._waiting):
                self._advance(service)
            if self._waiting:
                time.sleep(POLL_S)

    def _advance(self, service: Service) -> None:
        process = self._begun.get(service.name)
        if process is None:
            if not service.needs & {one.name for one in self._waiting}:
                self._begun[service.name] = keeper.start(service, self._stack.directory)
            return
        if not service.healthy():
            deadline = self._started_s + service.start_timeout_s
            check_starting(service, process.poll() is None, deadline)
            return
        self._waiting.remove(service)
        took = time.monotonic() - self._started_s
        print(f"{service.name:<9} {service.title} on 127.0.0.1:{service.port}, {took:.1f} s")

    def take_back(self) -> None:
        """Stop what was begun."""
        for service in self._services:
            if service.name in self._begun:
                with suppress(ServiceError):  # the first failure is the one to tell
                    keeper.stop(service)
