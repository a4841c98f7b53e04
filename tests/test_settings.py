"""Settings: defaults, parsing, and errors that name the variable."""

import pytest

from k2.errors import ConfigError
from k2.settings import load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    """No setting of the surroundings, no .env file."""
    import os

    for name in list(os.environ):
        if name.startswith("K2_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_need_no_server():
    settings = load_settings()
    assert settings.embedded
    assert settings.kafka.partitions == 16
    assert settings.sink.batch_size == 1000
    assert settings.sink.interval_s == 5.0
    assert settings.api.host == "127.0.0.1"


def test_lists_are_comma_separated(monkeypatch):
    monkeypatch.setenv("K2_BINANCE_SYMBOLS", "BTCUSDT, ethusdt ,")
    assert load_settings().binance.symbols == ("BTCUSDT", "ethusdt")


def test_an_empty_list_is_a_list(monkeypatch):
    monkeypatch.setenv("K2_BINANCE_FAILOVER_URLS", "")
    assert load_settings().binance.failover_urls == ()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("K2_KAFKA_LINGER_MS", "soon"),
        ("K2_KAFKA_PARTITIONS", "0"),
        ("K2_ENVIRONMENT", "moon"),
        ("K2_ROLES", "sink,oracle"),
        ("K2_API_PORT", "70000"),
    ],
)
def test_a_wrong_value_names_variable_and_value(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert variable in caught.value.message
    assert value.split(",")[-1] in caught.value.message


def test_the_default_key_is_for_the_local_environment_only(monkeypatch):
    monkeypatch.setenv("K2_ENVIRONMENT", "production")
    with pytest.raises(ConfigError, match="K2_API_KEY"):
        load_settings()
    monkeypatch.setenv("K2_API_KEY", "a-key-of-our-own")
    assert load_settings().api.key.get_secret_value() == "a-key-of-our-own"


def test_a_wrong_secret_is_not_printed(monkeypatch):
    monkeypatch.setenv("K2_ENVIRONMENT", "production")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "k2-dev" not in caught.value.message


def test_session_timeout_stays_below_request_timeout(monkeypatch):
    monkeypatch.setenv("K2_KAFKA_SESSION_TIMEOUT_S", "50")
    with pytest.raises(ConfigError, match="K2_KAFKA_SESSION_TIMEOUT_S"):
        load_settings()
