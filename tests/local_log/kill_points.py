"""Runs a scenario over and over, killed with SIGKILL at one file operation after the other.

`python -m tests.local_log.kill_points DIR` prints one JSON line per point: the directory left
behind, what was acknowledged before the kill, and whether the scenario reached its end.
"""

import json
import os
import signal
import sys
from pathlib import Path

from k2.transport.local.files import Files
from tests.local_log.logs import append, open_store


class Killing(Files):
    """Dies at operation number `point`: `before` it, `after` it, or with half of it done."""

    def __init__(self, point, moment):
        self.left = point
        self.moment = moment

    def _at(self, operation, half=None):
        self.left -= 1
        if self.left != 0:
            return operation()
        if self.moment == "half" and half is not None:
            half()
        elif self.moment == "after":
            operation()
        return os.kill(os.getpid(), signal.SIGKILL)

    def open_append(self, path):
        return self._at(lambda: super(Killing, self).open_append(path))

    def write_at(self, fd, data, position):
        write = super().write_at
        half = bytes(data)[: len(data) // 2]
        self._at(lambda: write(fd, data, position), lambda: write(fd, half, position))

    def truncate(self, fd, size):
        self._at(lambda: super(Killing, self).truncate(fd, size))

    def sync(self, fd):
        self._at(lambda: super(Killing, self).sync(fd))

    def replace(self, source, target):
        self._at(lambda: super(Killing, self).replace(source, target))

    def remove(self, path):
        self._at(lambda: super(Killing, self).remove(path))

    def remove_tree(self, path):
        half = max(path.rglob("*"))
        self._at(lambda: super(Killing, self).remove_tree(path), half.unlink)


def scenario(directory, files, ack):
    store = open_store(directory, files=files)
    log = store.create_topic("log", 1, {"segment.bytes": "400"}).partitions[0]
    table = store.create_topic(
        "table", 1, {"cleanup.policy": "compact", "segment.bytes": "250"}
    ).partitions[0]
    for n in range(8):
        for name, one, key in (("log", log, b"k"), ("table", table, b"%d" % (n % 2))):
            value = b"%d:%d" % (n % 2, n) + b"x" * 40
            append(one, value, keys=[key])
            ack(name, value.hex())
        if n % 3 == 2:
            store.commit("g", {("log", 0): n})
            ack("commit", n)
            store.sync()
    store.maintain()
    doomed = store.create_topic("doomed", 1).partitions[0]
    append(doomed, b"x")
    store.delete_topic("doomed")
    store.close()
    store = open_store(directory, files=files)
    append(store.partition("log", 0), b"end")
    ack("log", b"end".hex())
    store.close()


def run(directory, point, moment):
    """Run the scenario in a child until it dies; what it acknowledged, and how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        scenario(
            directory,
            Killing(point, moment),
            lambda *what: os.write(writing, json.dumps(what).encode() + b"\n"),
        )
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        acked = [json.loads(line) for line in pipe]
    _, status = os.waitpid(child, 0)
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL) and status != 0:
        sys.exit(f"the scenario failed at point {point} with status {status}")
    return acked, status == 0


def main(directory):
    point = 0
    survived = False
    while not survived:
        point += 1
        moment = ("before", "half", "after")[point % 3]
        name = f"{point}-{moment}"
        acked, survived = run(directory / name, point, moment)
        line = {"directory": name, "acked": acked, "survived": survived}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
