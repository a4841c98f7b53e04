import pytest

from tests.local_log.driver import LocalDriver
from tests.transport.drivers import KafkaDriver


@pytest.fixture(params=["kafka", "local"])
async def driver(request, tmp_path):
    """Each transport driver in turn."""
    if request.param == "local":
        made = LocalDriver(tmp_path)
    else:
        made = KafkaDriver(request.getfixturevalue("kafka"), tmp_path)
    yield made
    await made.close()
