"""Tiers come from a file."""

import pyarrow as pa
import pytest

from k2.degradation.tiers import load_tiers
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


@pytest.mark.parametrize(
    "text", ['{"crypto": {"tier9": []}}', "no json", '{"stocks": {}}', '{"crypto": {"tier1": [1]}}']
)
def test_a_wrong_file_is_named(tmp_path, text):
    file = tmp_path / "tiers.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="K2_DEGRADATION_TIERS_FILE="):
        load_tiers(str(file))
    with pytest.raises(ConfigError, match=r"no\.json"):
        load_tiers(str(tmp_path / "no.json"))
