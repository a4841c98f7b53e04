"""A headless Chromium, spoken to over its own protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from tests.services.require import require_programs


def need() -> None:
    """Skip without Chromium, fail in CI."""
    require_programs("chromium", "chromium")


class Page:
    """One tab. `errors`: what its console and its scripts complained about."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            content = message.json()
            if "id" in content:
                self._answers.pop(content["id"]).set_result(content)
            elif content["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(content["params"]["exceptionDetails"]))
            elif content["method"] == "Runtime.consoleAPICalled":
                if content["params"]["type"] in ("error", "assert"):
                    self.errors.append(str(content["params"]["args"]))
            elif content["method"] == "Log.entryAdded":
                entry = content["params"]["entry"]
                if entry["level"] == "error":
                    self.errors.append(f"{entry['text']} {entry.get('url', '')}")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol; its result."""
        ident = next(self._ids)
        self._answers[ident] = asyncio.get_running_loop().create_future()
        waiting = self._answers[ident]
        await self._socket.send_json({"id": ident, "method": method, "params": params})
        answer = await asyncio.wait_for(waiting, 20)
        assert "error" not in answer, answer
        return answer["result"]

    async def value(self, expression: str) -> Any:
        """What an expression of JavaScript is, on the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 15) -> Any:
        """Wait for an expression to be true; its value then."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not (value := await self.value(expression)):
            assert asyncio.get_running_loop().time() < deadline, f"never: {expression}"
            await asyncio.sleep(0.05)
        return value

    async def close(self) -> None:
        self._reader.cancel()
        await self._socket.close()


@asynccontextmanager
async def opened(url: str, directory: Path, *arguments: str) -> AsyncIterator[Page]:
    """Chromium with one tab at `url`; stopped at the end."""
    need()
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-dev-shm-usage", f"--user-data-dir={directory}", "--no-first-run"]
    command += ["--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1"]
    # Its own start page would be a second tab.
    command += [*arguments, "about:blank"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    drained = None
    try:
        port = await asyncio.wait_for(_port(process), 30)
        assert process.stderr is not None
        drained = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            socket = await http.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=2**26)
            page = Page(socket)
            for domain in ("Runtime", "Log", "Page"):
                await page.call(f"{domain}.enable")
            await page.call("Page.navigate", url=url)
            try:
                yield page
            finally:
                await page.close()
    finally:
        process.terminate()
        await process.wait()
        if drained is not None:
            await drained


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async for line in process.stderr:
        if b"DevTools listening on ws://" in line:
            return int(line.split(b"127.0.0.1:")[1].split(b"/")[0])
    raise AssertionError("chromium ended before it listened")
