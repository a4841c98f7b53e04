"""What is left after death at any moment: every acknowledged batch, and nothing in part."""

import json
import os
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.local_log.logs import batch, batches, crash, open_store, segments, values


def test_kill_9_at_every_file_operation(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.local_log.kill_points", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(points) > 60
    assert points[-1]["survived"]
    for point in points:
        check(tmp_path / point["directory"], point["acked"])


def check(directory, acked):
    with open_store(directory) as store:
        for topic in ("log", "table"):
            wanted = [bytes.fromhex(value) for name, value in acked if name == topic]
            if topic not in store.topics():
                assert not wanted
                continue
            log = store.partition(topic, 0)
            found = values(log)
            if topic == "log":
                # At most the append under way may be there beyond the acknowledged ones.
                assert found[: len(wanted)] == wanted
                assert len(found) <= len(wanted) + 1
                continue
            newest = {value[:1]: value for value in wanted}
            read = {value[:1]: value for value in found}
            under_way = read.items() - newest.items()
            assert len(under_way) <= 1
            assert newest.keys() <= read.keys()
        committed = [int(value) for name, value in acked if name == "commit"]
        if committed:
            at = store.committed("g", "log", 0)
            assert at is not None
            assert at >= committed[-1]
        if "log" in store.topics():
            log = store.partition("log", 0)
            end = log.end_offset
            assert log.append(batch([b"after"])) == end
            assert values(log)[-1] == b"after"


Step = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 20), st.integers(0, 60)),
    st.just(("sync",)),
    st.just(("close",)),
    st.just(("crash",)),
    st.tuples(st.just("cut"), st.integers(0, 400)),
    st.tuples(st.just("garbage"), st.binary(max_size=100)),
)


@given(
    steps=st.lists(Step, max_size=25),
    roll=st.sampled_from([300, 2_000, 10**6]),
    max_bytes=st.integers(1, 5_000),
)
@settings(max_examples=80, deadline=None)
def test_what_is_read_is_a_prefix_of_what_was_acknowledged(
    tmp_path_factory, steps, roll, max_bytes
):
    directory = tmp_path_factory.mktemp("log")
    store = open_store(directory)
    log = store.create_topic("t", 1, {"segment.bytes": str(roll)}).partitions[0]
    model = []  # (base, values, file, end of the batch in it)
    for step in steps:
        if step[0] == "append":
            rows = [os.urandom(step[2]) for _ in range(step[1])]
            base = log.append(batch(rows))
            path = segments(log)[-1]
            model.append((base, rows, path, path.stat().st_size))
        elif step[0] == "sync":
            store.sync()
        elif step[0] == "close":
            store.close()
            store = open_store(directory)
        else:
            crash(store)
            damage(model, segments(log), *step)
            store = open_store(directory)
        log = store.partition("t", 0)
        assert batches(log, max_bytes=max_bytes) == [
            (base, [(base + n, b"key", value) for n, value in enumerate(rows)])
            for base, rows, _, _ in model
        ]
        assert log.end_offset == (model[-1][0] + len(model[-1][1]) if model else 0)
    store.close()


def damage(model, files, kind, argument=None):
    """Damage the last file as a crash could; takes from the model what that costs."""
    if not files or kind == "crash":
        return
    last = files[-1]
    size = last.stat().st_size
    if kind == "cut":
        size = max(0, size - argument)
        os.truncate(last, size)
        while model and model[-1][2] == last and model[-1][3] > size:
            model.pop()
    else:
        with last.open("ab") as file:
            file.write(argument)
