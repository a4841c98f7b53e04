"""Settings: defaults, parsing, and errors that name the variable."""

import pytest

from k2.errors import ConfigError
from k2.setting_names import unknown_among, unknown_variables
from k2.setting_types import without_password
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
    assert settings.kafka.partitions == 1
    assert settings.sink.batch_size == 1000
    assert settings.sink.interval_s == 5.0
    assert settings.api.host == "127.0.0.1"


def test_only_many_workers_gain_by_many_partitions(monkeypatch):
    monkeypatch.setenv("K2_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092")
    assert load_settings().kafka.partitions == 16
    monkeypatch.setenv("K2_KAFKA_PARTITIONS", "3")
    assert load_settings().kafka.partitions == 3


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


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("K2_API_PORT", "", "a whole number from 1 to 65535"),
        ("K2_API_PORT", "eight", "a whole number from 1 to 65535"),
        ("K2_API_PORT", "80.5", "a whole number"),
        ("K2_API_HOST", " ", "a name or address of this machine"),
        ("K2_SINK_INTERVAL_S", "0", "a number above 0"),
        ("K2_SINK_INTERVAL_S", "inf", "a number above 0"),
        ("K2_BINANCE_MAX_LIFETIME_H", "nan", "a number above 0 to 24"),
        ("K2_BINANCE_ENABLED", "perhaps", "true or false"),
        ("K2_LOG_LEVEL", "LOUD", "one of DEBUG, INFO, WARNING, ERROR"),
        ("K2_BINANCE_SYMBOLS", ",", "at least one entry"),
        ("K2_BINANCE_SYMBOLS", "", "at least one entry"),
        ("K2_BINANCE_SYMBOLS", "BTC/USDT", "letters and digits"),
        ("K2_BINANCE_STREAMS", "trades", "allowed: trade, bookTicker"),
        ("K2_BINANCE_URL", "", "ws:// or wss:// and a host"),
        ("K2_BINANCE_URL", "foo", "ws:// or wss:// and a host"),
        ("K2_BINANCE_URL", "https://stream.binance.com", "ws:// or wss:// and a host"),
        ("K2_BINANCE_URL", "ws://host:port", "ws:// or wss:// and a host"),
        ("K2_BINANCE_FAILOVER_URLS", "wss://a,b", "ws:// or wss:// and a host"),
        ("K2_KAFKA_BOOTSTRAP_SERVERS", "kafka://host:9092", "host:port, comma separated"),
        ("K2_KAFKA_BOOTSTRAP_SERVERS", "a:9092,,b", "host:port, comma separated"),
        ("K2_KAFKA_SCHEMA_REGISTRY_URL", "registry:8081", "http:// or https:// and a host"),
        ("K2_ICEBERG_CATALOG_URI", "thrift://hive", "http(s)://host:port (REST)"),
        ("K2_ICEBERG_S3_ENDPOINT", "minio", "http:// or https:// and a host"),
        ("K2_DATA_DIR", "", "the path of a directory"),
        ("K2_BINANCE_CUSTOM_CA_BUNDLE", "none.pem", "the path of a file that is there"),
        ("K2_APP_ID", "my app", "letters, digits"),
        ("K2_ROLES", " , ", "one or more of source, validate"),
    ],
)
def test_what_is_refused_is_named_with_what_is_allowed(monkeypatch, variable, value, allowed):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert caught.value.message.startswith(variable)
    assert allowed in caught.value.message


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("K2_API_PORT", " 8001 "),
        ("K2_API_HOST", "::1"),
        ("K2_BINANCE_URL", "ws://127.0.0.1:9443"),
        ("K2_BINANCE_FAILOVER_URLS", "wss://a:443, wss://b"),
        ("K2_KAFKA_BOOTSTRAP_SERVERS", "a:9092, b:9092"),
        ("K2_KAFKA_SCHEMA_REGISTRY_URL", "http://me:secret@one:8081,http://two:8081"),
        ("K2_ICEBERG_CATALOG_URI", "postgresql+psycopg2://k2:secret@db/lake"),
        ("K2_DATA_DIR", "not/there/yet"),
    ],
)
def test_what_is_usual_is_taken(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    load_settings()


def test_all_wrong_settings_are_told_at_once(monkeypatch):
    monkeypatch.setenv("K2_API_PORT", "x")
    monkeypatch.setenv("K2_SINK_BATCH_SIZE", "0")
    with pytest.raises(ConfigError, match=r"K2_SINK_BATCH_SIZE='0'.*K2_API_PORT='x'"):
        load_settings()


def test_a_data_directory_that_is_a_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "data").write_text("")
    monkeypatch.setenv("K2_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(ConfigError, match="a directory, and this is a file"):
        load_settings()


def test_a_password_in_a_wrong_address_is_not_printed(monkeypatch):
    monkeypatch.setenv("K2_KAFKA_SCHEMA_REGISTRY_URL", "ftp://me:hush@registry")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "hush" not in caught.value.message
    assert (
        without_password("http://a:b@c,http://d:e@f") == "http://a:********@c,http://d:********@f"
    )


def test_the_older_name_of_the_batch_size_still_works(monkeypatch):
    monkeypatch.setenv("K2_CONSUMER_BATCH_SIZE", "500")
    assert load_settings().sink.batch_size == 500
    monkeypatch.setenv("K2_SINK_BATCH_SIZE", "700")
    assert load_settings().sink.batch_size == 700


def test_misspelt_variables_are_told_with_the_nearest_setting(monkeypatch, tmp_path):
    found = unknown_among(
        ["K2_BINACE_URL", "k2_api_port", "K2_API_KEY_FILE", "K2_ZZZ", "PATH", "K2_TEST_X"],
        "environment",
    )
    assert [(one.name, one.nearest) for one in found] == [
        ("K2_BINACE_URL", "K2_BINANCE_URL"),
        ("K2_ZZZ", ""),
    ]
    assert "did you mean K2_BINANCE_URL?" in found[0].message
    assert "`k2 config` lists them all" in found[1].message
    (tmp_path / ".env").write_text("K2_ROLE=sink\nK2_API_PORT=8001\n")
    monkeypatch.setenv("K2_LOGLEVEL", "INFO")
    assert [(one.name, one.origin, one.nearest) for one in unknown_variables()] == [
        ("K2_LOGLEVEL", "environment", "K2_LOG_LEVEL"),
        ("K2_ROLE", ".env", "K2_ROLES"),
    ]


def test_a_secret_may_be_in_a_file(monkeypatch, tmp_path):
    file = tmp_path / "key"
    file.write_text("from-a-file\n")
    monkeypatch.setenv("K2_API_KEY_FILE", str(file))
    assert load_settings().api.key.get_secret_value() == "from-a-file"
    monkeypatch.setenv("K2_API_KEY", "also-here")
    with pytest.raises(ConfigError, match="K2_API_KEY and K2_API_KEY_FILE are both set"):
        load_settings()


def test_a_secret_file_wins_over_the_dotenv_file_and_may_be_named_there(monkeypatch, tmp_path):
    (tmp_path / "key").write_text("from-a-file")
    (tmp_path / ".env").write_text(f"K2_API_KEY_FILE={tmp_path / 'key'}\n")
    assert load_settings().api.key.get_secret_value() == "from-a-file"


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), (b" \n", "empty"), (b"\xff\xfe", "not text")]
)
def test_an_unusable_secret_file_is_named(monkeypatch, tmp_path, content, told):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("K2_KAFKA_SASL_PASSWORD_FILE", str(tmp_path / "key"))
    with pytest.raises(ConfigError, match=rf"K2_KAFKA_SASL_PASSWORD_FILE=.*{told}"):
        load_settings()


def test_only_secrets_may_be_in_files():
    found = unknown_among(["K2_API_KEY_FILE", "K2_API_PORT_FILE", "K2_KAFKA_SSL_CA_FILE"], "here")
    assert [one.name for one in found] == ["K2_API_PORT_FILE"]
