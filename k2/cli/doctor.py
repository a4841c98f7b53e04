"""`k2 doctor`: is everything K2 needs there, and what to do if not."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial

import click
from rich.console import Console
from rich.table import Table

from k2.doctor.finding import Finding, Look, run
from k2.doctor.lake import look_at_lake, look_at_storage
from k2.doctor.log import look_at_log
from k2.doctor.machine import look_at_machine
from k2.doctor.schemas import look_at_schemas
from k2.doctor.worker import look_at_worker
from k2.settings import Settings, load_settings

_SIGNS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}


def looks(settings: Settings) -> dict[str, tuple[Look, str]]:
    """Every look with the remedy for when it cannot even be taken."""
    log = "start Kafka, or mend K2_KAFKA_BOOTSTRAP_SERVERS and its security settings"
    registry = "start the registry, or mend K2_KAFKA_SCHEMA_REGISTRY_URL"
    catalog = "start the catalog, or mend K2_ICEBERG_CATALOG_URI and its credentials"
    storage = "mend the warehouse's address, credentials, rights or space"
    found = {
        "machine": (look_at_machine, "look at the data directory"),
        "log": (look_at_log, log),
        "schemas": (look_at_schemas, registry),
        "catalog": (look_at_lake, catalog),
        "storage": (look_at_storage, storage),
        "worker": (look_at_worker, "look at its log"),
    }
    return {name: (partial(look, settings), remedy) for name, (look, remedy) in found.items()}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def doctor(as_json: bool) -> None:
    """Check settings, log, topics, schemas, lake, storage, clock, disk and a running worker.

    Exit status 1 when something failed; warnings leave it at 0.
    """
    findings = run(looks(load_settings()))
    failed = any(one.state == "failed" for one in findings)
    if as_json:
        rows = [dataclasses.asdict(one) for one in findings]
        print(json.dumps({"ok": not failed, "findings": rows}))
    else:
        _show(findings)
    sys.exit(int(failed))


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("check", "state", "found"):
        table.add_column(name, overflow="fold")
    for one in findings:
        detail = f"{one.detail}\n→ {one.remedy}" if one.remedy else one.detail
        table.add_row(one.check, _SIGNS.get(one.state, one.state), detail)
    Console().print(table)
