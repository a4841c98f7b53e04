"""Memory of this process against the limit that holds for it."""

import pytest

from k2.degradation.memory import MemoryGauge

HOST = 16 * 2**30


def gauge(root, limit_mb=0):
    return MemoryGauge(limit_mb, root=root, rss=lambda: 2**30, host=lambda: HOST)


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, HOST),
        ({"proc/self/cgroup": "0::/\n"}, HOST),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": f"{4 * 2**30}\n",
            },
            4 * 2**30,
        ),
        # In a container the path is the host's; only the mount's top is to be seen.
        (
            {
                "proc/self/cgroup": "0::/system.slice/docker-1\n",
                "sys/fs/cgroup/memory.max": f"{2**31}\n",
            },
            2**31,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{2**31}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            2**31,
        ),
    ],
)
def test_the_smallest_limit_holds(tmp_path, files, limit):
    write(tmp_path, files)
    made = gauge(tmp_path)
    assert made.limit_bytes == limit
    assert made.fraction() == 2**30 / limit


def test_a_configured_limit_comes_first(tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1"})
    assert gauge(tmp_path, 2_048).fraction() == 0.5


def test_this_process_uses_some_of_it():
    assert 0 < MemoryGauge().fraction() < 1
