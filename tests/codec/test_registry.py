"""One behaviour suite over every schema registry, and what is particular to each."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from k2.codec.avro import Codec
from k2.codec.http_registry import HttpRegistry
from k2.codec.registry import FileRegistry, SchemaRegistry
from k2.codec.schemas import kind_of, schema_text, subject_of
from k2.dev.registry import Registry
from k2.errors import (
    RegistryUnavailableError,
    SchemaError,
    SchemaIncompatibleError,
    SchemaNotFoundError,
)
from k2.topics import BINANCE_QUOTES, BINANCE_TRADES
from tests.codec.confluent_double import Store, confluent_double

Factory = Callable[[], SchemaRegistry]


def record(*fields: dict[str, object], name: str = "R") -> str:
    return json.dumps({"type": "record", "name": name, "fields": list(fields)})


ONE = record({"name": "a", "type": "string"})
TWO = record({"name": "a", "type": "string"}, {"name": "b", "type": "int", "default": 0})
BROKEN = record({"name": "a", "type": "string"}, {"name": "b", "type": "int"})


@pytest.fixture(params=["file", "http", "apicurio"])
def factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Factory]:
    """Opens the same registry anew each time it is called."""
    if request.param == "file":
        yield lambda: FileRegistry(tmp_path)
    elif request.param == "http":
        with confluent_double() as (url, _):
            yield lambda: HttpRegistry(url)
    else:
        server: Registry = request.getfixturevalue("registry_server")
        opened: list[HttpRegistry] = []

        def connect() -> HttpRegistry:
            opened.append(HttpRegistry(server.url))
            return opened[-1]

        yield connect
        for one in opened:
            one.close()


@pytest.fixture
def subject() -> str:
    return f"test-{uuid.uuid4()}-value"


def test_registering_again_gives_the_same_id(factory: Factory, subject: str) -> None:
    schema_id = factory().register(subject, ONE)
    assert 0 < schema_id < 2**31
    assert factory().register(subject, ONE) == schema_id
    assert factory().register(f"other-{subject}", ONE) == schema_id


def test_ids_find_their_schema_from_any_process(factory: Factory, subject: str) -> None:
    reader = factory()
    first = factory().register(subject, ONE)
    assert json.loads(reader.schema(first)) == json.loads(ONE)
    second = factory().register(subject, TWO)
    assert second != first
    assert json.loads(reader.schema(second)) == json.loads(TWO)
    assert json.loads(reader.schema(first)) == json.loads(ONE)


def test_latest_is_the_newest_version(factory: Factory, subject: str) -> None:
    registry = factory()
    registry.register(subject, ONE)
    assert registry.latest(subject).version == 1
    schema_id = factory().register(subject, TWO)
    latest = registry.latest(subject)
    assert (latest.subject, latest.version, latest.schema_id) == (subject, 2, schema_id)
    assert json.loads(latest.schema) == json.loads(TWO)


def test_what_cannot_read_the_past_is_refused(factory: Factory, subject: str) -> None:
    registry = factory()
    registry.register(subject, ONE)
    assert registry.check_compatible(subject, TWO) == []
    assert registry.check_compatible(subject, BROKEN) != []
    with pytest.raises(SchemaIncompatibleError, match=r"(?s)BACKWARD.*|.*incompatible"):
        registry.register(subject, BROKEN)
    assert registry.latest(subject).version == 1


def test_the_past_schema_may_come_again(factory: Factory, subject: str) -> None:
    """An older worker starting beside a newer one finds its own schema."""
    registry = factory()
    first = registry.register(subject, ONE)
    registry.register(subject, TWO)
    assert registry.register(subject, ONE) == first
    assert registry.latest(subject).version == 2


def test_the_unknown_is_named(factory: Factory, subject: str) -> None:
    with pytest.raises(SchemaNotFoundError, match="2147483647"):
        factory().schema(2**31 - 1)
    with pytest.raises(SchemaNotFoundError, match=subject):
        factory().latest(subject)
    assert factory().check_compatible(subject, ONE) == []


def test_what_is_no_schema_is_refused(factory: Factory, subject: str) -> None:
    with pytest.raises(SchemaError):
        factory().register(subject, "{")


def test_every_topics_schema_is_registered_under_its_subject(factory: Factory) -> None:
    registry = factory()
    names = [*BINANCE_TRADES.all_names, *BINANCE_QUOTES.all_names]
    codecs = {
        subject_of(name): Codec.open(registry, subject_of(name), schema_text(kind_of(name)))
        for name in names
    }
    assert set(codecs) == {
        "market.crypto.trades-value",
        "market.crypto.quotes-value",
        "market.gaps-value",
        "market.dead_letters-value",
    }
    for subject, codec in codecs.items():
        assert registry.latest(subject).schema_id == codec.schema_id
        assert json.loads(registry.schema(codec.schema_id))["namespace"] == "com.k2.marketdata"


def test_the_file_keeps_ids_when_it_is_lost(tmp_path: Path) -> None:
    first = FileRegistry(tmp_path).register("s", ONE)
    FileRegistry(tmp_path).register("s", TWO)
    (tmp_path / "registry.json").unlink()
    assert FileRegistry(tmp_path).register("s", ONE) == first
    assert first == FileRegistry(tmp_path / "elsewhere").register("t", ONE)


def test_two_schemas_with_one_digest_get_two_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Same:
        def __init__(self, _data: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return b"\xff\xff\xff\xff"

    monkeypatch.setattr("k2.codec.registry.hashlib.sha256", Same)
    registry = FileRegistry(tmp_path)
    ids = [registry.register("s", ONE), registry.register("s", TWO)]
    assert ids == [2**31 - 1, 1]
    assert json.loads(registry.schema(1)) == json.loads(TWO)


def test_a_torn_file_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "registry.json").write_text('{"schemas": {')
    with pytest.raises(RegistryUnavailableError, match="delete the file"):
        FileRegistry(tmp_path).latest("s")
    with pytest.raises(RegistryUnavailableError, match="delete the file"):
        FileRegistry(tmp_path).register("s", ONE)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryUnavailableError, match="not writable"):
        FileRegistry(tmp_path / "file" / "below").register("s", ONE)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(3):
            FileRegistry(tmp_path).register(f"s{number}", ONE)
        FileRegistry(tmp_path).register("shared", TWO)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry = FileRegistry(tmp_path)
    assert {registry.latest(f"s{number}").version for number in range(1, 9)} == {1}
    assert registry.latest("shared").version == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["registry.json", "registry.lock"]


@pytest.fixture
def double() -> Iterator[tuple[str, Store]]:
    with confluent_double() as running:
        yield running


def test_http_sets_backward_before_the_first_schema(double: tuple[str, Store]) -> None:
    url, store = double
    HttpRegistry(url).register("s", ONE)
    assert store.levels == {"s": "BACKWARD"}
    assert store.calls[:2] == [("PUT", "config"), ("POST", "subjects")]


def test_http_workers_that_start_together_register_together(double: tuple[str, Store]) -> None:
    url, store = double
    first = HttpRegistry(url).register("s", ONE)
    store.racing = True
    assert HttpRegistry(url).register("s", ONE) == first
    with pytest.raises(SchemaIncompatibleError, match="b: a new field needs a default"):
        HttpRegistry(url).register("s", BROKEN)


def test_http_logs_in_and_tells_no_password(double: tuple[str, Store]) -> None:
    url, store = double
    HttpRegistry(url, login=("me", "hush:hush")).register("s", ONE)
    assert {base64.b64decode(str(one).split()[1]) for one in store.logins} == {b"me:hush:hush"}
    store.failing = 500
    with pytest.raises(RegistryUnavailableError) as caught:
        HttpRegistry(url.replace("//", "//me:hush@"), retries=0).schema(1)
    assert "hush" not in caught.value.message


def test_http_refusals_carry_the_registrys_own_reason(double: tuple[str, Store]) -> None:
    url, _ = double
    registry = HttpRegistry(url)
    registry.register("s", ONE)
    with pytest.raises(SchemaIncompatibleError, match="b: a new field needs a default"):
        registry.register("s", BROKEN)


def test_http_failures_of_the_server_are_not_verdicts(double: tuple[str, Store]) -> None:
    url, store = double
    store.failing = 500
    with pytest.raises(RegistryUnavailableError, match="backend datastore error"):
        HttpRegistry(url, retries=0).schema(1)


def test_http_without_a_server_names_the_setting() -> None:
    with pytest.raises(RegistryUnavailableError, match="K2_KAFKA_SCHEMA_REGISTRY_URL"):
        HttpRegistry("http://127.0.0.1:9", retries=0, timeout_s=1.0).schema(1)
