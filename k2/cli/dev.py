"""`k2 dev`: the production services on this machine, without containers."""

from __future__ import annotations

import fcntl
import functools
import json
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from k2.dev import keeper
from k2.dev.process import check_port_free, wait_healthy
from k2.dev.service import Service
from k2.dev.stack import NAMES, Stack, default_directory, variables
from k2.dev.starting import Starting
from k2.errors import ConfigError, ServiceError

_DIRECTORY = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_directory,
    show_default="a directory of this user",
    help="Where the services keep data and logs.",
)
_SERVICES = click.argument("services", nargs=-1, type=click.Choice(NAMES))


@click.group()
def dev() -> None:
    """Kafka, registry, S3, catalog and PostgreSQL on this machine, without containers."""


def _parse_ports(options: tuple[str, ...]) -> dict[str, dict[str, int]]:
    ports: dict[str, dict[str, int]] = {}
    for option in options:
        name, _, number = option.partition("=")
        service, _, which = name.partition(".")
        if service not in NAMES or not number.isdigit() or not 0 < int(number) < 65_536:
            raise ConfigError(
                f"--port {option!r} is not SERVICE=PORT or SERVICE.NAME=PORT with a service of "
                f"{', '.join(NAMES)} and a port of 1 to 65535"
            )
        ports.setdefault(service, {})[which or "port"] = int(number)
    return ports


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One `up` or `down` of a directory at a time."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as exc:
        raise ConfigError(
            f"{directory} cannot be written ({exc.strerror}); choose another place with --dir"
        ) from exc
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dev.command()
@_SERVICES
@_DIRECTORY
@click.option(
    "--port", "ports", multiple=True, metavar="SERVICE=PORT", help="Instead of the usual one."
)
@click.option("--secure", is_flag=True, help="Kafka by SASL_SSL with a password and CA of its own.")
def up(services: tuple[str, ...], directory: Path, ports: tuple[str, ...], secure: bool) -> None:
    """Start SERVICES (all of them by default) and wait until each answers."""
    directory = directory.absolute()
    with _alone(directory):
        before = Stack.load(directory)
        stack = before.with_services(services or NAMES, _parse_ports(ports), secure=secure)
        wanted = services or NAMES
        _start([service for name, service in stack.build().items() if name in wanted], stack)
    print('\nPoint K2 at them:  eval "$(k2 dev env)"')


def _start(services: list[Service], stack: Stack) -> None:
    missing = [service for service in services if keeper.find(service) is None]
    for service in services:
        if service not in missing:
            wait_healthy(service, functools.partial(_kept, service))
            print(f"{service.name:<9} runs already on 127.0.0.1:{service.port}")
    for service in missing:
        for name, port in service.ports.items():
            check_port_free(service.name, name, port)
    for service in missing:
        service.fetch()
        service.prepare()
    stack.save()
    starting = Starting(missing, stack)
    try:
        starting.run()
    except (ServiceError, KeyboardInterrupt):
        starting.take_back()
        raise


def _kept(service: Service) -> bool:
    return keeper.find(service) is not None


@dev.command()
@_DIRECTORY
@click.option("--unset", is_flag=True, help="Lines that take the variables back.")
def env(directory: Path, unset: bool) -> None:
    """Print the lines that point K2 at the running services: eval "$(k2 dev env)"."""
    running = _running(Stack.load(directory.absolute()))
    if not running:
        raise ConfigError(f"no service of {directory} runs; start them with k2 dev up")
    for name, value in variables(running).items():
        print(f"unset {name}" if unset else f"export {name}={shlex.quote(value)}")


def _running(stack: Stack) -> dict[str, Service]:
    return {
        name: service for name, service in stack.build().items() if keeper.find(service) is not None
    }


@dev.command()
@_DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def status(directory: Path, as_json: bool) -> None:
    """Print each service's state; status 1 unless all that were started are healthy."""
    stack = Stack.load(directory.absolute())
    found = {name: _state(service) for name, service in stack.build().items()}
    if as_json:
        print(json.dumps(found))
    elif not found:
        print(f"no services in {directory}; start them with k2 dev up")
    else:
        for name, state in found.items():
            pid = state["pid"] or "-"
            print(
                f"{name:<9} {state['state']:<9} 127.0.0.1:{state['port']:<6} {pid:<8} "
                f"{state['log']}"
            )
    if not found or any(state["state"] != "healthy" for state in found.values()):
        raise SystemExit(1)


def _state(service: Service) -> dict[str, Any]:
    kept = keeper.find(service)
    state = "stopped" if kept is None else "healthy" if service.healthy() else "unhealthy"
    return {
        "state": state,
        "port": service.port,
        "pid": kept.service_pid if kept else None,
        "log": str(service.log_file),
    }


@dev.command()
@_SERVICES
@_DIRECTORY
def down(services: tuple[str, ...], directory: Path) -> None:
    """Stop SERVICES (all of them by default); data stays."""
    directory = directory.absolute()
    with _alone(directory):
        stack = Stack.load(directory)
        chosen = {n: s for n, s in stack.build().items() if not services or n in services}
        with ThreadPoolExecutor(len(NAMES)) as threads:
            for name, stopped in zip(
                chosen, threads.map(keeper.stop, chosen.values()), strict=True
            ):
                print(f"{name:<9} {'stopped' if stopped else 'did not run'}")
