"""Tiers come from a file."""

import msgspec
import pyarrow as pa
import pytest

from k2.degradation.measured import Volume, rank
from k2.degradation.tiers import TierLists, load_lists, load_tiers
from k2.errors import ConfigError
from k2.topics import ASSET_CLASSES


def test_the_shipped_list_has_twenty_first_and_up_to_hundred_in_all():
    tiers = load_tiers()
    assert set(tiers) == set(ASSET_CLASSES)
    crypto = tiers["crypto"]
    asked = ["BTCUSDT", "ETHBTC", "BTCFDUSD", "UNIUSDT", "NOBODYUSDT", "USDT", "BTC", "BTCUSDT"]
    assert crypto.of_all(pa.array(asked)).tolist() == [1, 1, 1, 2, 3, 3, 1, 1]
    assert tiers["equities"].of("BHP") == 1
    assert tiers["options"].of("BHP") == 3
    assert list(crypto._named.values()).count(1) == 20
    assert len(crypto._named) <= 100


def test_a_file_replaces_it(tmp_path):
    file = tmp_path / "tiers.json"
    file.write_text('{"crypto": {"tier1": ["AUSD"], "tier2": ["B"], "quotes": ["USD"]}}')
    crypto = load_tiers(str(file))["crypto"]
    assert [crypto.of(s) for s in ("AUSD", "BUSD", "B", "BTCUSD", "A")] == [1, 2, 2, 3, 3]
    assert crypto.of_all(pa.array([], pa.string())).tolist() == []


def test_overrides_come_before_the_lists(tmp_path):
    file = tmp_path / "tiers.json"
    lists = '"tier1": ["A"], "quotes": ["USD"], "overrides": {"A": 3, "NEW": 1, "BUSD": 2}'
    file.write_text(f'{{"crypto": {{{lists}}}}}')
    crypto = load_tiers(str(file))["crypto"]
    assert [crypto.of(s) for s in ("AUSD", "NEWUSD", "BUSD", "B")] == [3, 1, 2, 3]


def test_futures_have_the_tiers_of_their_base():
    assert load_tiers()["futures"].of("BTCUSDT") == 1


def test_volume_in_any_currency_makes_the_tiers_and_keeps_what_people_said(tmp_path):
    before = {
        "crypto": TierLists(["OLD"], [], ["USDT", "BTC", "EUR"], {"DOGE": 1}),
        "equities": TierLists(["BHP"], []),
    }
    small = [Volume("crypto", f"C{n}USDT", 1_000.0 - n, 1.0) for n in range(120)]
    traded = [
        Volume("crypto", "BTCUSDT", 5_000.0, 100.0),
        Volume("crypto", "ETHBTC", 60.0, 0.05),  # 6,000 dollars, above Bitcoin
        Volume("crypto", "XEUR", 10_000.0, 1.0),  # nobody trades the euro in dollars here
        Volume("crypto", "USDT", 1.0, 1.0),
    ]
    found = rank([*small, *traded], before)
    crypto = found.lists["crypto"]
    assert crypto.tier1[:3] == ["ETH", "BTC", "C0"]
    assert (len(crypto.tier1), len(crypto.tier2)) == (20, 80)
    assert found.unranked == ["XEUR"]
    assert crypto.overrides == {"DOGE": 1}
    assert found.lists["equities"].tier1 == ["BHP"]
    file = tmp_path / "tiers.json"
    file.write_bytes(msgspec.json.encode(found.lists))
    assert load_lists(str(file)) == found.lists
    assert load_tiers(str(file))["crypto"].of("DOGEUSDT") == 1


def test_shares_are_ranked_by_turnover():
    found = rank([Volume("equities", "BHP", 2.0, 1.0), Volume("equities", "RIO", 3.0, 1.0)], {})
    assert found.lists["equities"].tier1 == ["RIO", "BHP"]


@pytest.mark.parametrize(
    "text",
    [
        '{"crypto": {"tier9": []}}',
        "no json",
        '{"stocks": {}}',
        '{"crypto": {"tier1": [1]}}',
        '{"crypto": {"overrides": {"A": 4}}}',
    ],
)
def test_a_wrong_file_is_named(tmp_path, text):
    file = tmp_path / "tiers.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="K2_DEGRADATION_TIERS_FILE="):
        load_tiers(str(file))
    with pytest.raises(ConfigError, match=r"no\.json"):
        load_tiers(str(tmp_path / "no.json"))
