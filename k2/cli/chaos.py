"""`k2 chaos`: break a cluster on purpose, and count what became of every record."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from k2.chaos.cluster import Options
from k2.chaos.run import Report, keep, run
from k2.chaos.scenarios import SCENARIOS, Scenario
from k2.errors import InvalidParameter
from k2.log import configure_structlog


def _chosen(names: tuple[str, ...]) -> list[Scenario]:
    known = {scenario.name: scenario for scenario in SCENARIOS}
    for name in names:
        if name not in known:
            raise InvalidParameter("scenario", name, ", ".join(known))
    return [known[name] for name in names] or list(SCENARIOS)


@click.command()
@click.option("--minutes", type=float, default=20.0, show_default=True, help="How long to strike.")
@click.option("--rounds", type=int, help="End after so many rounds through all scenarios.")
@click.option("--seed", type=int, help="The same seed, the same faults; default: a random one.")
@click.option("--workers", default=2, show_default=True, help="With Kafka.")
@click.option("--brokers", default=3, show_default=True, help="With Kafka.")
@click.option("--embedded", is_flag=True, help="One worker with the embedded log, no services.")
@click.option("--scenario", "names", multiple=True, help="Only this one; may be repeated.")
@click.option(
    "--capture",
    "captures",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Play this recorded session in a loop under fresh ids; default: the simulator.",
)
@click.option("--speed", default=0.5, show_default=True, help="Times real time, per symbol.")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Keep data and logs here."
)
@click.option("--list", "listing", is_flag=True, help="List the scenarios.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def chaos(
    minutes: float,
    rounds: int | None,
    seed: int | None,
    workers: int,
    brokers: int,
    embedded: bool,
    names: tuple[str, ...],
    captures: tuple[Path, ...],
    speed: float,
    directory: Path | None,
    listing: bool,
    as_json: bool,
) -> None:
    """Kill, freeze and disconnect a K2 of its own; lose nothing, store nothing twice.

    It starts real services (Kafka, a registry, PostgreSQL, S3) and workers on this machine, touches
    no other K2, and exits with status 1 unless every promise held.
    """
    if listing:
        for scenario in SCENARIOS:
            print(f"{scenario.name:<26} {', '.join(scenario.on)}")
        return
    scenarios = _chosen(names)
    configure_structlog()  # standard output is the report's
    with ExitStack() as stack:
        if directory is None:
            directory = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="k2-chaos-", ignore_cleanup_errors=True)
                )
            )
        keep(directory)
        options = Options(
            directory.absolute(),
            embedded=embedded,
            workers=workers,
            brokers=brokers,
            captures=captures,
            speed=speed,
            seed=random.SystemRandom().randrange(10**6) if seed is None else seed,
        )
        report = asyncio.run(
            run(options, minutes=minutes, scenarios=scenarios, rounds=rounds, tell=_tell)
        )
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        _table(report)
    if not report.held:
        sys.exit(1)


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _table(report: Report) -> None:
    shown = report.as_json()
    print(f"\n{'scenario':<26} {'faults':>6} {'recovery, s':>24}")
    for name, entry in shown["scenarios"].items():
        times = ", ".join(f"{seconds:.1f}" for seconds in entry["recovery_s"])
        print(f"{name:<26} {entry['count']:>6} {times:>24}")
    print()
    for what, times in shown["measured_s"].items():
        print(f"{what}: {', '.join(f'{seconds:.1f}' for seconds in times)} s")
    for name in (
        *("seed", "faults", "seconds", "acknowledged", "landed", "duplicates_dropped"),
        *("dead_letters", "missing_ids", "gap_ids", "lost", "duplicated"),
    ):
        print(f"{name:<20} {shown[name]:>12}")
    for event, count in shown["errors_logged"].items():
        print(f"logged {count} times: {event}")
    for worker, reasons in shown["own_stops"].items():
        for reason in reasons:
            print(f"{worker} ended: {reason[:160]}")
    for late in shown["late"]:
        print(f"LATE {late}")
    for problem in shown["problems"]:
        print(f"PROBLEM {problem}")
    print("every promise held" if report.held else "PROMISES BROKEN")
