"""The live page in a real browser: it shows trades as they come, and outlives its worker."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import math
import os
from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.cluster import FEED, SESSIONS, SYMBOLS, Cluster
from tests.e2e.harness import Stack
from tests.services import chromium

pytestmark = pytest.mark.timeout(180)

ROWS = 'document.querySelectorAll("#symbols tr").length'
PRICE = 'document.querySelector("#symbols td.n")?.textContent'
LIVE = 'document.querySelector("#link").textContent === "live"'
CANDLES = 'document.querySelectorAll("#chart rect").length'
SHOWN = 'document.querySelector("#chart-symbol").textContent'
SEEN = '[document.querySelector("#chart-price").textContent, Date.now()]'
GAPS = 'document.querySelector("#gaps-count").textContent'
BANNER = 'document.querySelector("#shedding")'
OTHERS = 'document.querySelector("#others")'
STAGES = '[...document.querySelectorAll("#stages div:not(.note)")].map((one) => one.textContent)'
FRAMES = 'document.querySelector("#feeds td.n")?.textContent'


async def hold(stack: Stack, level: str) -> None:
    """Hold a level by hand for a minute."""
    body = {"level": level, "minutes": 1, "reason": "a test"}
    status, answer = await stack.request("POST", "/v1/degradation", json=body)
    assert status == 200, answer


async def shot(page: chromium.Page, name: str) -> None:
    """Keep a picture where `K2_TEST_SCREENSHOTS` says, for people."""
    directory = os.environ.get("K2_TEST_SCREENSHOTS")
    if directory:
        result = await page.call("Page.captureScreenshot", captureBeyondViewport=True)
        path = Path(directory) / f"{name}.png"
        await asyncio.to_thread(path.write_bytes, base64.b64decode(result["data"]))


async def shown_after_s(stack: Stack, page: chromium.Page) -> float:
    """Age of the trade that made the price on the page, when it was looked at."""
    price, at_ms = await page.value(SEEN)
    _, answer = await stack.get("/v1/trades", symbol="BTCUSDT", limit="1000")
    times = [
        dt.datetime.fromisoformat(trade["timestamp"]).timestamp()
        for trade in answer["data"]
        if Decimal(trade["price"]) == Decimal(price)
    ]
    return min((at_ms / 1_000 - at_s for at_s in times if at_s <= at_ms / 1_000), default=math.inf)


async def eventually_shown_in_time(stack: Stack, page: chromium.Page) -> None:
    """Trades are on the page within two seconds; a busy machine may take a few looks to say so."""
    ages = []
    for _ in range(50):
        ages.append(await shown_after_s(stack, page))
        if ages[-1] < 2.0:
            return
    raise AssertionError(f"every price on the page was older than 2 s: {ages}")


async def test_page_shows_what_happens_and_survives_a_restart(tmp_path: Path) -> None:
    chromium.need()
    async with Stack(tmp_path) as stack:
        simulate = ["simulate", "--symbols", "BTCUSDT,ETHUSDT", "--rate", "200"]
        await stack.start_exchange(*simulate)
        await stack.start_worker(K2_BINANCE_SYMBOLS="BTCUSDT,ETHUSDT")
        url = f"http://127.0.0.1:{stack.port}/"
        async with chromium.opened(url, tmp_path / "profile", "--window-size=1200,1000") as page:
            await page.until(f"{ROWS} === 2 && {LIVE}")
            await page.until(CANDLES)
            assert await page.value("document.title") == "K2"
            assert "BTCUSDT" in await page.value(
                'document.querySelector("#chart-symbol").textContent'
            )
            before = await page.value(PRICE)
            await page.until(f"{PRICE} !== {before!r}", timeout_s=10)
            await eventually_shown_in_time(stack, page)
            await page.until(f'{GAPS} === "0"')
            assert await page.value(f"{BANNER}.hidden"), "at NORMAL there is nothing to say"
            assert await page.value(f"{OTHERS}.hidden"), "one worker is no table"
            await shot(page, "light")
            await hold(stack, "GRACEFUL")
            await page.until(f'{BANNER}.textContent.includes("tier 3")')
            assert not await page.value(f"{BANNER}.hidden")
            await shot(page, "shedding")
            assert page.errors == []

            await page.value("document.querySelector('button[data-symbol=\"ETHUSDT\"]').focus()")
            for kind in ("rawKeyDown", "char", "keyUp"):
                await page.call(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key="Enter",
                    code="Enter",
                    text="\r" if kind == "char" else "",
                    windowsVirtualKeyCode=13,
                )
            await page.until(f'{SHOWN} === "ETHUSDT"')
            await asyncio.sleep(1.2)
            focused = "document.activeElement.dataset.symbol"
            assert await page.value(focused) == "ETHUSDT", "redrawing keeps the focus"

            assert await stack.stop_worker() == 0
            await page.until('document.querySelector("#link").textContent.startsWith("no answer")')
            await stack.start_worker(K2_BINANCE_SYMBOLS="BTCUSDT,ETHUSDT")
            await page.until(LIVE)
            frames = await page.until(FRAMES)
            await page.until(f"{FRAMES} !== {frames!r}")
            # That nobody answered meanwhile the browser itself noted; from here on all is well.
            page.errors.clear()

            await page.call(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": "dark"}],
            )
            await page.call(
                "Emulation.setDeviceMetricsOverride",
                width=390,
                height=844,
                deviceScaleFactor=2,
                mobile=True,
            )
            await page.until("window.innerWidth === 390")
            assert await page.value("document.documentElement.scrollWidth") <= 390
            back = "getComputedStyle(document.body).backgroundColor"
            assert await page.value(back) == "rgb(17, 20, 24)"
            await shot(page, "phone-dark")
            await page.call("Emulation.setEmulatedMedia", features=[])
            await page.until(f'{back} === "rgb(247, 248, 250)"')
            assert await page.value("document.documentElement.scrollWidth") <= 390
            await shot(page, "phone-light")
            assert page.errors == []
        assert await stack.stop_worker() == 0


@pytest.mark.kafka
async def test_the_page_of_a_worker_that_only_answers_shows_them_all(
    cluster: Cluster, tmp_path: Path
) -> None:
    chromium.need()
    await cluster.start_exchange("simulate", "--symbols", ",".join(SYMBOLS), "--rate", "400")
    await cluster.start("mover", K2_ROLES="source,validate,sink,control", **FEED)
    query = await cluster.start("query", K2_ROLES="query")
    url = f"http://127.0.0.1:{query.port}/"
    async with chromium.opened(url, tmp_path / "profile", "--window-size=1200,1000") as page:
        await page.until(f"{ROWS} === {len(SYMBOLS)} && {LIVE} && !{OTHERS}.hidden")
        roles = '[...document.querySelectorAll("#workers td:nth-child(2)")].map(c => c.textContent)'
        assert await page.value(roles) == ["query", "source, validate, sink, control"]
        await page.until(f'document.querySelectorAll("#feeds tr").length === {len(SESSIONS)}')
        await page.until(f'{STAGES}.slice(0, 3).every((one) => !one.startsWith("0 "))')
        await shot(page, "workers")
        await page.call(
            "Emulation.setDeviceMetricsOverride",
            width=390, height=844, deviceScaleFactor=2, mobile=True,
        )  # fmt: skip
        await page.until("window.innerWidth === 390")
        assert await page.value("document.documentElement.scrollWidth") <= 390
        assert page.errors == []
    for name in ("mover", "query"):
        assert await cluster.stop(name) == 0


async def test_programs_get_json_and_a_key_that_is_secret_is_not_on_the_page(
    tmp_path: Path,
) -> None:
    secret = "a-key-nobody-should-see-in-a-page"
    async with Stack(tmp_path) as stack:
        await stack.start_worker(K2_BINANCE_ENABLED="false", K2_API_KEY=secret)
        assert stack.http is not None
        url = f"http://127.0.0.1:{stack.port}/"
        async with stack.http.get(url) as answer:
            assert (await answer.json())["data"]["name"] == "k2"
        async with stack.http.get(url, headers={"Accept": "text/html"}) as answer:
            assert secret not in await answer.text()
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        async with stack.http.get(f"{url}page/app.js") as answer:
            assert answer.content_type == "text/javascript"
        async with stack.http.get(f"{url}page/__init__.py") as answer:
            assert answer.status == 404
        assert await stack.stop_worker() == 0
