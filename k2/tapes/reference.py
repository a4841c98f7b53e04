"""Reference data from files: what an exchange says of its instruments, or a CSV table of companies.

Read are Binance's `exchangeInfo` (spot and USD-M futures; its `serverTime` is when it holds),
Coinbase's `/products`, Kraken's `AssetPairs`, and CSV with a header. What names no time holds from
the time given, else from now on. An entry that makes no record is told, the others are loaded.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from k2.errors import TapeError
from k2.records import VENDOR_MAP, build
from k2.tapes.files import Content, content_of
from k2.tapes.rows import BadRow
from k2.times import micros

_US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One instrument; decimals are the venue's digits. `since_us` None: the file does not say."""

    symbol: str
    base: str
    quote: str
    tick_size: str = "0"
    lot_size: str = "0"
    min_notional: str = "0"
    name: str = ""
    isin: str = ""
    status: str = ""
    since_us: int | None = None
    vendor: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the command says of files that don't: currency, zone of dates, and since when."""

    currency: str
    zone: ZoneInfo
    since_us: int


@dataclass(frozen=True, slots=True)
class ReferenceFile:
    """A file that was read: its layout, its records as a wire batch, and what is none."""

    content: Content
    layout: str
    batch: pa.RecordBatch
    bad: list[BadRow]

    @property
    def path(self) -> Path:
        return self.content.path


def read(path: Path, exchange: str, asset_class: str, rules: Rules, now_us: int) -> ReferenceFile:
    """Read one file. Raises `TapeError` when it is not reference data at all."""
    content = content_of(path)
    layout, found = _entries(content, rules)
    entries: list[tuple[int, Entry]] = []
    bad: list[BadRow] = []
    for number, raw, make in found:
        try:
            entries.append((number, _checked(make())))
        except (KeyError, ValueError, TypeError, AttributeError, InvalidOperation) as exc:
            detail = f"no {exc}" if isinstance(exc, KeyError) else str(exc)
            bad.append(BadRow(number, "BAD_REFERENCE", detail, raw))
    if not entries and not bad:
        raise TapeError(f"{path} holds no instrument", path=str(path))
    batch = _batch(content.digest, entries, exchange.upper(), asset_class, rules, now_us)
    return ReferenceFile(content, layout, batch, bad)


#: (number of the entry, its bytes, what makes the entry)
_Found = Iterator[tuple[int, bytes, Callable[[], Entry]]]


def _entries(content: Content, rules: Rules) -> tuple[str, _Found]:
    if content.data.lstrip()[:1] not in (b"{", b"["):
        return "csv", _of_csv(content, rules)
    try:
        # A recorded answer may have other lines behind it.
        answer, _ = json.JSONDecoder(parse_float=str).raw_decode(content.data.decode().lstrip())
    except ValueError as exc:
        raise TapeError(f"{content.path} is no whole JSON document: {exc}") from exc
    if isinstance(answer, list):
        return "coinbase-products", _each(answer, _coinbase)
    if "symbols" in answer:
        since_us = int(answer["serverTime"]) * 1_000 if "serverTime" in answer else None
        return "binance-exchange-info", _each(answer["symbols"], lambda s: _binance(s, since_us))
    if isinstance(answer.get("result"), dict):
        return "kraken-asset-pairs", _each(answer["result"].values(), _kraken)
    raise TapeError(
        f"{content.path} is JSON, but neither Binance's exchangeInfo nor Coinbase's products nor "
        f"Kraken's AssetPairs; it has {', '.join(list(answer)[:5])}",
        path=str(content.path),
    )


def _each(found: Iterable[Any], make: Callable[[Any], Entry]) -> _Found:
    for number, one in enumerate(found, start=1):
        yield number, json.dumps(one).encode(), lambda one=one: make(one)  # type: ignore[misc]


def _binance(symbol: Mapping[str, Any], since_us: int | None) -> Entry:
    filters = {one["filterType"]: one for one in symbol.get("filters", ())}
    notional = filters.get("MIN_NOTIONAL") or filters.get("NOTIONAL") or {}
    vendor = {
        name: str(symbol[key])
        for name, key in (("contract_type", "contractType"), ("onboard_date", "onboardDate"))
        if key in symbol
    }
    return Entry(
        symbol["symbol"],
        symbol["baseAsset"],
        symbol["quoteAsset"],
        filters.get("PRICE_FILTER", {}).get("tickSize", "0"),
        filters.get("LOT_SIZE", {}).get("stepSize", "0"),
        str(notional.get("minNotional", notional.get("notional", "0"))),
        status=symbol.get("status", symbol.get("contractStatus", "")),
        since_us=since_us,
        vendor=vendor,
    )


def _coinbase(product: Mapping[str, Any]) -> Entry:
    base, quote = product["base_currency"], product["quote_currency"]
    return Entry(
        base + quote,
        base,
        quote,
        product.get("quote_increment", "0"),
        product.get("base_increment", "0"),
        product.get("min_market_funds") or "0",
        status=product.get("status", ""),
        vendor={"product_id": product["id"]},
    )


def _kraken(pair: Mapping[str, Any]) -> Entry:
    from k2.sources.kraken import pair_of  # noqa: PLC0415 - with it comes every source

    known = pair_of(pair["wsname"])
    lot = Decimal(1).scaleb(-int(pair["lot_decimals"])) if "lot_decimals" in pair else Decimal(0)
    return Entry(
        known.symbol,
        known.base,
        known.quote,
        pair.get("tick_size") or f"{Decimal(1).scaleb(-int(pair['pair_decimals'])):f}",
        f"{lot:f}",
        str(pair.get("costmin", "0")),
        status=pair.get("status", ""),
        vendor={"wsname": pair["wsname"], "altname": pair.get("altname", "")},
    )


#: Other headers of K2's columns.
_ALIASES: Final = {"company_name": "name", "start_date": "valid_from", "base": "base_asset"}
_COLUMNS: Final = (
    "symbol", "name", "isin", "status", "valid_from", "base_asset", "quote_asset", "currency",
    "tick_size", "lot_size", "min_notional",
)  # fmt: skip


def _of_csv(content: Content, rules: Rules) -> _Found:
    text = content.data.decode("utf-8-sig", "replace")
    lines = csv.DictReader(io.StringIO(text, newline=""))
    names = [(name or "").strip().lower() for name in lines.fieldnames or ()]
    if "symbol" not in names:
        raise TapeError(
            f"{content.path} is no reference data: its header has no column symbol but "
            f"{', '.join(names)[:200]!r}",
            path=str(content.path),
        )
    lines.fieldnames = [_ALIASES.get(name, name) for name in names]
    for row in lines:
        shown = ",".join(str(value) for value in row.values()).encode()
        yield lines.line_num, shown, lambda row=row: _of_row(row, rules)  # type: ignore[misc]


def _of_row(row: Mapping[Any, Any], rules: Rules) -> Entry:
    values = {name: (value or "").strip() for name, value in row.items() if isinstance(name, str)}
    if None in row or any(value is None for value in row.values()):
        raise ValueError(f"the row has another number of columns than the header: {values}")
    quote = values.get("quote_asset") or values.get("currency") or rules.currency
    given = {name: values.get(name) or "0" for name in ("tick_size", "lot_size", "min_notional")}
    since = values.get("valid_from")
    return Entry(
        values["symbol"].upper(),
        (values.get("base_asset") or values["symbol"]).upper(),
        quote.upper(),
        name=values.get("name", ""),
        isin=values.get("isin", ""),
        status=values.get("status", ""),
        since_us=day_us(since, rules.zone) if since else None,
        vendor={n: value for n, value in values.items() if n not in _COLUMNS and value},
        **given,
    )


def day_us(text: str, zone: ZoneInfo) -> int:
    """A time or day (ISO, or MM/DD/YYYY) as microseconds UTC; in `zone` when it names no offset.

    Raises `ValueError`.
    """
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        at = dt.datetime.strptime(text, "%m/%d/%Y")  # noqa: DTZ007 - the zone comes next
    return micros(at if at.tzinfo else at.replace(tzinfo=zone))


def _checked(entry: Entry) -> Entry:
    for name in ("tick_size", "lot_size", "min_notional"):
        text = getattr(entry, name)
        if not Decimal(text).is_finite() or Decimal(text) < 0:
            raise ValueError(f"{name} is {text!r}; allowed: a decimal of at least 0")
    if not (entry.symbol.isascii() and entry.symbol.isalnum() and entry.symbol.isupper()):
        raise ValueError(f"symbol is {entry.symbol[:40]!r}; allowed: upper-case letters and digits")
    return entry


def _batch(
    digest: str,
    entries: list[tuple[int, Entry]],
    exchange: str,
    asset_class: str,
    rules: Rules,
    now_us: int,
) -> pa.RecordBatch:
    since = [rules.since_us if e.since_us is None else e.since_us for _, e in entries]
    ids = [f"{digest}-{number}" for number, _ in entries]
    count, now = len(entries), np.full(len(entries), now_us, np.int64)
    only = [entry for _, entry in entries]
    columns: dict[str, Any] = {
        "message_id": [
            f"{exchange}:{at // 1_000}:{entry.symbol}:{ident}"
            for entry, at, ident in zip(only, since, ids, strict=True)
        ],
        "reference_id": ids,
        "exchange": exchange,
        "asset_class": asset_class,
        "timestamp": np.array(since, np.int64),
        "receive_timestamp": now,
        "ingestion_timestamp": now,
        "symbol": [entry.symbol for entry in only],
        "name": [entry.name for entry in only],
        "isin": [entry.isin for entry in only],
        "status": [entry.status for entry in only],
        "base_asset": [entry.base for entry in only],
        "quote_asset": [entry.quote for entry in only],
        "currency": [entry.quote for entry in only],
        "tick_size": [entry.tick_size for entry in only],
        "lot_size": [entry.lot_size for entry in only],
        "min_notional": [entry.min_notional for entry in only],
        "vendor_data": pa.array([list(entry.vendor.items()) for entry in only], VENDOR_MAP),
    }
    return build("reference_data", count, columns)
