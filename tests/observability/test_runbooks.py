"""What runbooks tell people to type is what K2 takes, and the events they name are logged."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from k2.cli.main import cli
from k2.web.endpoints import ENDPOINTS

PAGES = [Path("docs/runbooks.md"), *sorted(Path("docs/runbooks").glob("*.md"))]
_FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_ASKED = re.compile(r"\$K2(/[\w./{}-]*)")
_EVENT = re.compile(r"[a-z]+(?:_[a-z]+)+")
_SOURCE = "\n".join(path.read_text() for path in sorted(Path("k2").rglob("*.py")))


def lines_of(page: Path) -> Iterator[str]:
    """Lines of fenced blocks, continued ones whole, and what stands in a sentence."""
    text = page.read_text()
    for block in _FENCED.findall(text):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())
    yield from _SPAN.findall(_FENCED.sub("", text))


COMMANDS = sorted(
    {
        (page.name, line.strip())
        for page in PAGES
        for line in lines_of(page)
        if line.strip().startswith(("k2 ", "curl "))
    }
)


def parsed(arguments: list[str]) -> None:
    """As the command line is read, without running anything."""
    command: click.Command = cli
    parent, name = None, "k2"
    while True:
        context = command.make_context(name, list(arguments), parent=parent)
        if not isinstance(command, click.Group):
            return
        found, chosen, arguments = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert found is not None
        assert chosen is not None
        parent, name, command = context, found, chosen


def test_there_are_commands() -> None:
    assert len([line for _, line in COMMANDS if line.startswith("k2 ")]) > 15
    assert len([line for _, line in COMMANDS if line.startswith("curl ")]) > 10


@pytest.mark.parametrize(("page", "line"), [one for one in COMMANDS if one[1].startswith("k2 ")])
def test_k2_takes_the_command(page: str, line: str) -> None:
    try:
        parsed(shlex.split(line, comments=True)[1:])
    except click.MissingParameter:
        # A command that is only named; what is written out has to be right.
        assert len(shlex.split(line)) <= 3, page
    except click.UsageError as exc:
        pytest.fail(f"{page}: `{line}`: {exc.format_message()}")


@pytest.mark.parametrize(("page", "line"), [one for one in COMMANDS if one[1].startswith("curl ")])
def test_curl_asks_an_endpoint_in_the_one_way(page: str, line: str) -> None:
    asked = _ASKED.findall(line)
    assert len(asked) == 1, f"{page}: `{line}` names the address otherwise"
    method = "POST" if "--json" in line else "GET"
    known = {(one.method, one.path): one for one in ENDPOINTS}
    endpoint = known.get((method, asked[0]))
    assert endpoint is not None, f"{page}: {method} {asked[0]} is no endpoint"
    assert (endpoint.scope is None) or " -H $H " in line, f"{page}: `{line}` gives no key"


def test_address_and_key_are_named_in_one_place() -> None:
    defined = [page.name for page in PAGES if "export K2=" in page.read_text()]
    assert defined == ["runbooks.md"]
    for page in PAGES:
        assert "localhost:8000" not in page.read_text(), page
        assert "X-API-Key: " not in page.read_text(), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_events_are_logged_by_k2(page: Path) -> None:
    named = [span for span in lines_of(page) if _EVENT.fullmatch(span)]
    assert [name for name in named if not re.search(rf'["\']{name}["\']|\b{name}\b', _SOURCE)] == []


def test_failed_commits_are_looked_for_under_what_the_sink_logs() -> None:
    text = Path("docs/runbooks/lake.md").read_text()
    section = text.partition("## IcebergWriteFailures")[2].partition("\n## ")[0]
    sink = "\n".join(Path(name).read_text() for name in ("k2/lake/commit.py", "k2/worker.py"))
    events = [name for name in _SPAN.findall(section) if _EVENT.fullmatch(name)]
    logged = [name for name in events if f'"{name}"' in sink]
    assert logged, "no event of a commit"
    assert "commit_failed" not in events
