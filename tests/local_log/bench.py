"""Rates of the embedded log: `python -m tests.local_log.bench [RECORDS]`.

Records of about 350 bytes that compress as market data does (3 to 1), 16 partitions.
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faust
from faust.types import TP

from k2.settings import Kafka
from k2.transport.admin import TopicSpec
from k2.transport.batch import OutBatch
from k2.transport.local.format import encode
from k2.transport.local.store import LogStore
from k2.transport.registry import batch_topic, registry

PARTITIONS = 16


def records(count):
    fixed = b"BINANCE:1723161253000:BTCUSDT" * 7
    return [
        b"%020d" % random.getrandbits(60) + fixed + os.urandom(80) + b"%040d" % n
        for n in range(count)
    ]


def report(what, count, seconds):
    sys.stdout.write(f"{what:48} {count / seconds:12,.0f} /s   {seconds / count * 1e6:8.2f} us\n")


def storage(directory, count):
    values = records(4_096)
    with LogStore(directory / "store") as store:
        topic = store.create_topic("t", PARTITIONS)
        for size in (1, 100, 4_096):
            rounds = min(count, 20_000 * size) // size
            started = time.perf_counter()
            for n in range(rounds):
                rows = values[:size]
                topic.partitions[n % PARTITIONS].append(
                    encode(rows, [b"BTCUSDT"] * size, [1_000] * size)
                )
            seconds = time.perf_counter() - started
            report(f"encode and append, batches of {size}", rounds * size, seconds)
    return 0


def app_of(directory, **options):
    app = faust.App("bench", broker=f"local://{directory / 'log'}", web_enabled=False, **options)
    registry(app).kafka = Kafka()
    return app


async def reading(directory, count):
    app = app_of(directory)
    transport = app.transport
    await transport.ensure_topics([TopicSpec("t", PARTITIONS)])
    await app.maybe_start_producer()
    values = records(2_000)
    rounds = count // 2_000
    started = time.perf_counter()
    for n in range(0, rounds, 8):
        sends = [
            app.producer.send_batch(OutBatch("t", k % PARTITIONS, values, [b"BTCUSDT"] * 2_000))
            for k in range(n, min(n + 8, rounds))
        ]
        await asyncio.gather(*sends)
    report("send_batch of 2,000", rounds * 2_000, time.perf_counter() - started)
    started = time.perf_counter()
    sends = [
        await app.producer.send("t", b"k", values[n % 2_000], n % PARTITIONS, None, None)
        for n in range(20_000)
    ]
    await asyncio.gather(*sends)
    report("send, one message each", 20_000, time.perf_counter() - started)
    reader, found = transport.create_reader(), 0
    await reader.start({TP("t", n): 0 for n in range(PARTITIONS)})
    started = time.perf_counter()
    while found < rounds * 2_000 + 20_000:
        found += sum(len(batch) for batch in await reader.getmany(1.0))
    report("read through the LogReader, as columns", found, time.perf_counter() - started)
    await reader.stop()
    await app.producer.stop()
    await transport.close()


async def consuming(directory, count):
    """The whole log through an agent; then the time from an append to the agent."""
    app = app_of(directory, stream_buffer_maxsize=64)
    seen = {"records": 0, "first": 0.0}
    arrived = asyncio.Event()

    @app.agent(batch_topic(app, "t", partitions=PARTITIONS))
    async def read(stream):
        async for batch in stream:
            seen["first"] = seen["first"] or time.perf_counter()
            seen["records"] += len(batch)
            arrived.set()

    app.finalize()
    task = asyncio.ensure_future(app.start())
    wanted = count // 2_000 * 2_000 + 20_000
    while seen["records"] < wanted:
        arrived.clear()
        await arrived.wait()
    report("through a Faust agent", wanted, time.perf_counter() - seen["first"])
    delays = []
    for _ in range(1_000):
        arrived.clear()
        started = time.perf_counter()
        await app.producer.send_batch(OutBatch("t", 3, [b"x" * 350] * 10, [b"k"] * 10))
        await arrived.wait()
        delays.append((time.perf_counter() - started) * 1e3)
        await asyncio.sleep(0.001)
    delays.sort()
    sys.stdout.write(
        f"append to agent, 1,000 samples: p50 {delays[500]:.2f} ms, p99 {delays[990]:.2f} ms\n"
    )
    await task
    await app.stop()
    await app.transport.close()


START = """
import time; started = time.perf_counter()
import asyncio, sys
from pathlib import Path
from tests.local_log.bench import app_of
from k2.transport.registry import batch_topic
app = app_of(Path(sys.argv[1]))
@app.agent(batch_topic(app, "t", partitions=16))
async def read(stream):
    async for batch in stream: pass
table = app.Table("sums", partitions=16, default=int)
@app.task
async def ready():
    import sys; sys.stdout.write('ready'); sys.__stdout__.write('ready'); sys.__stdout__.flush()
    import os; os._exit(0)
import faust; faust.Worker(app, loglevel='error').execute_from_commandline()
"""


def start(directory):
    for what in ("after a crash", "after a crash", "after a clean close"):
        if what == "after a clean close":
            with LogStore(directory / "log"):
                pass
        command = [
            sys.executable,
            "-c",
            START,
            str(directory),
            "worker",
            "--without-web",
            "-l",
            "error",
        ]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        size = sum(path.stat().st_size for path in (directory / "log").rglob("*.log"))
        assert "ready" in done.stdout, done.stderr
        sys.stdout.write(
            f"process start to worker ready, {what}: {time.perf_counter() - started:.2f} s "
            f"({size / 1e6:.0f} MB of log)\n"
        )


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        storage(directory, count)
        asyncio.run(reading(directory, count))
        asyncio.run(consuming(directory, count))
        start(directory)


if __name__ == "__main__":
    main()
