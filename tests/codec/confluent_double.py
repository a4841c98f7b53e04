"""A small stand-in for a Confluent schema registry: its paths, codes and answers, in memory.

It decides compatibility with our own rules, so it says nothing about those; what it checks is that
the client's requests, errors and order of calls are right. The suite also runs on a real server.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from k2.codec.compat import incompatibilities


class Store:
    """Subjects, ids from 1, and the calls that were made."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.subjects: dict[str, list[int]] = {}
        self.levels: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.failing = 0
        self.logins: list[str | None] = []
        #: Answer writes with a conflict although they took effect: another worker was as fast.
        self.racing = False

    def text(self, schema_id: int) -> str | None:
        return next((text for text, known in self.ids.items() if known == schema_id), None)

    def conflicts(self, subject: str, text: str) -> list[str]:
        versions = self.subjects.get(subject, [])
        if not versions or self.levels.get(subject) != "BACKWARD":
            return []
        before = self.text(versions[-1])
        assert before is not None
        return incompatibilities(text, before)


class Handler(BaseHTTPRequestHandler):
    store: Store

    def log_message(self, *_args: Any) -> None:
        """Keep the test's output clean."""

    def _answer(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _refuse(self, status: int, code: int, message: str) -> None:
        self._answer(status, {"error_code": code, "message": message})

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0].strip("/").split("/")
        self.store.calls.append((self.command, path[0]))
        self.store.logins.append(self.headers.get("Authorization"))
        if self.store.failing:
            self._refuse(self.store.failing, 50_001, "backend datastore error")
            return
        request = json.loads(body) if body else {}
        match (self.command, path):
            case (method, ["config", subject]):
                self._config(method, subject, request)
            case ("POST", ["subjects", subject]):
                self._look_up(subject, request["schema"])
            case ("POST", ["subjects", subject, "versions"]):
                self._register(subject, request["schema"])
            case ("GET", ["schemas", "ids", schema_id]):
                self._schema(int(schema_id))
            case ("GET", ["subjects", subject, "versions", "latest"]):
                self._latest(subject)
            case ("POST", ["compatibility", "subjects", subject, "versions", "latest"]):
                self._fits(subject, request["schema"])
            case _:
                self._refuse(404, 404, f"HTTP 404 {self.command} {self.path}")

    do_GET = do_PUT = do_POST = _handle  # noqa: N815 - the server looks for these names

    def _config(self, method: str, subject: str, request: dict[str, Any]) -> None:
        if method == "GET":
            self._answer(200, {"compatibilityLevel": self.store.levels[subject]})
            return
        self.store.levels[subject] = request["compatibility"]
        if self.store.racing:
            self._refuse(409, 0, "A rule named 'COMPATIBILITY' already exists.")
        else:
            self._answer(200, request)

    def _schema(self, schema_id: int) -> None:
        text = self.store.text(schema_id)
        if text is None:
            self._refuse(404, 40_403, f"Schema {schema_id} not found")
        else:
            self._answer(200, {"schema": text})

    def _fits(self, subject: str, text: str) -> None:
        if subject in self.store.subjects:
            self._answer(200, {"is_compatible": not self.store.conflicts(subject, text)})
        else:
            self._refuse(404, 40_401, f"Subject '{subject}' not found.")

    def _register(self, subject: str, text: str) -> None:
        try:
            conflicts = self.store.conflicts(subject, text)
            assert json.loads(text)["type"]
        except (ValueError, KeyError, TypeError):
            self._refuse(422, 42_201, "Invalid schema")
            return
        if conflicts:
            self._refuse(409, 409, f"Schema being registered is incompatible: {conflicts}")
            return
        schema_id = self.store.ids.setdefault(text, len(self.store.ids) + 1)
        versions = self.store.subjects.setdefault(subject, [])
        if schema_id not in versions:
            versions.append(schema_id)
        if self.store.racing:
            self._refuse(409, 0, f"An artifact with ID '{subject}' already exists.")
        else:
            self._answer(200, {"id": schema_id})

    def _look_up(self, subject: str, text: str) -> None:
        schema_id = self.store.ids.get(text)
        if schema_id not in self.store.subjects.get(subject, []):
            self._refuse(404, 40_403, "Schema not found")
            return
        found = {"subject": subject, "id": schema_id, "version": 1, "schema": text}
        self._answer(200, found)

    def _latest(self, subject: str) -> None:
        versions = self.store.subjects.get(subject)
        if not versions:
            self._refuse(404, 40_401, f"Subject '{subject}' not found.")
            return
        self._answer(
            200,
            {
                "subject": subject,
                "version": len(versions),
                "id": versions[-1],
                "schema": self.store.text(versions[-1]),
            },
        )


@contextmanager
def confluent_double() -> Iterator[tuple[str, Store]]:
    """(address, store) of a running stand-in."""
    store = Store()
    handler = type("BoundHandler", (Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
