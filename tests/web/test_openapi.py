"""The document is valid, complete, and what the server does."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
import schemathesis
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from k2.web.endpoints import ENDPOINTS, SCHEMAS
from k2.web.openapi import openapi
from k2.web.reference import render
from tests.web.api import KEY, Api, running

DOCUMENT = openapi(ENDPOINTS, SCHEMAS, "1.2.3")


def test_every_schema_in_the_document_is_one() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                Draft202012Validator.check_schema(parameter["schema"])
            for response in operation["responses"].values():
                for content in response.get("content", {}).values():
                    Draft202012Validator.check_schema(content["schema"])


def test_operation_ids_are_unique() -> None:
    ids = [one["operationId"] for methods in DOCUMENT["paths"].values() for one in methods.values()]
    assert len(set(ids)) == len(ids)


def test_the_page_needs_no_network_and_no_script() -> None:
    page = render(DOCUMENT)
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    for path in DOCUMENT["paths"]:
        assert path in page


async def test_document_and_page_are_served(api: Api) -> None:
    async with api.client.get("/openapi.json") as response:
        assert (await response.json())["info"]["version"] == "1.2.3"
    async with api.client.get("/docs") as response:
        assert response.content_type == "text/html"
        assert "style-src" in response.headers["Content-Security-Policy"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a thread: schemathesis asks from outside, synchronously."""

    started, found = threading.Event(), []
    path: Path = tmp_path_factory.mktemp("fuzzed")
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            async with running(path, monkeypatch) as api:
                server = api.client.server
                assert isinstance(server, TestServer)
                found.append(str(server.make_url("")).rstrip("/"))
                started.set()
                await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(60)
    yield found[0]
    loop.call_soon_threadsafe(done.set)
    thread.join(60)
    loop.close()


#: A stream has no end; its own suite reads it.
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT).exclude(path="/v1/stream")


OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}


#: An operation that takes nothing but a key has nothing to get wrong.
TAKING = [
    f"{method.upper()} {path}"
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if path != "/v1/stream" and (method == "post" or operation.get("parameters"))
]
CONFORMS = [status_code_conformance, content_type_conformance, response_schema_conformance]
few_or_many = pytest.mark.parametrize("count", [4, pytest.param(100, marks=pytest.mark.heavy)])


# One test each with a name of its own: of tests with one name processes beside each other run one.
@few_or_many
@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_conform(label: str, count: int, address: str) -> None:
    """Whatever is sent: a documented status, type and shape, and never a 500."""

    @given(case=OPERATIONS[label].as_strategy())
    @examples(count)
    def conforms(case: schemathesis.Case) -> None:
        response = case.call(base_url=address, headers=KEY)
        allowed = response.status_code < 500 or case.path in ("/health", "/health/ready")
        assert allowed, response.text
        case.validate_response(response, checks=CONFORMS)

    conforms()


@few_or_many
@pytest.mark.parametrize("label", TAKING)
def test_what_is_wrong_is_refused(label: str, count: int, address: str) -> None:
    """What the document does not allow: the sender's fault by its status, said as documented."""

    @given(case=OPERATIONS[label].as_strategy(GenerationMode.NEGATIVE, headers=KEY))
    @examples(count)
    def refuses(case: schemathesis.Case) -> None:
        response = case.call(base_url=address)
        refused = 400 <= response.status_code < 500
        asked = str(response.request.url)
        assert refused or right_as_text(case, asked), (asked, response.request.body)
        assert response.status_code not in (401, 403), "the key is right"
        case.validate_response(response, checks=CONFORMS)

    refuses()


def right_as_text(case: schemathesis.Case, url: str) -> bool:
    """Whether what is wrong as JSON (`"16"` for 16, false for a list) is right in a query."""
    taken = {one["name"]: one for one in case.operation.definition.raw.get("parameters", ())}
    given = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    return case.method == "GET" and all(
        name in taken and any(map(Draft202012Validator(taken[name]["schema"]).is_valid, read(text)))
        for name, text in given
    )


def read(text: str) -> list[object]:
    """A query's text as each type of parameter reads it."""
    whole = [int(text)] if re.fullmatch(r"-?[0-9]+", text) else []
    return [text, text.split(","), *whole]


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
