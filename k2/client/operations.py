"""What the platform says of itself: history, gaps, feeds, counts, level."""

from __future__ import annotations

from typing import Any, Literal

from k2.client.http import Http
from k2.client.rows import Rows


class Operations(Http):
    """The lake's history, and the state of feeds and workers."""

    async def snapshots(
        self, table: Literal["trades", "quotes", "gaps"] = "trades", *, limit: int = 10
    ) -> Rows:
        """Snapshots to travel to, newest first."""
        return await self.listed("GET", "/v1/snapshots", {"table": table, "limit": limit})

    async def gaps(
        self,
        *,
        symbol: str | None = None,
        exchange: str | None = None,
        state: Literal["open", "closed", "all"] = "open",
        limit: int = 100,
    ) -> Rows:
        """Ids that never came, or came after all; newest first."""
        given = {"symbol": symbol, "exchange": exchange, "state": state, "limit": limit}
        return await self.listed("GET", "/v1/gaps", given)

    async def feeds(self) -> list[dict[str, Any]]:
        """The exchange sessions of all workers, their quality and open gaps."""
        found: list[dict[str, Any]] = (await self.json("GET", "/v1/feeds", {}))["data"]
        return found

    async def workers(self) -> list[dict[str, Any]]:
        """Every worker: the one that is asked as it is now, the others as they said last."""
        found: list[dict[str, Any]] = (await self.json("GET", "/v1/workers", {}))["data"]
        return found

    async def stats(self) -> dict[str, Any]:
        """Rows, files and hot rows per table, and the query slots."""
        return await self.facts("/v1/stats")

    async def status(self) -> dict[str, Any]:
        """What the worker says of itself, and the totals of all workers."""
        return await self.facts("/v1/status")

    async def degradation(self) -> dict[str, Any]:
        """The level, why, and its history."""
        return await self.facts("/v1/degradation")

    async def shed(self) -> dict[str, Any]:
        """What all workers have put off and will still store; ranges of the one that is asked."""
        return await self.facts("/v1/shed")
