"""What the services need from the machine, and what to do where it is missing."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

_JAVA = 17
#: Where packages put PostgreSQL's server programs, which are not on PATH.
_POSTGRES_HOMES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)
_HOW = {
    "java": "Java 17 (Debian: apt-get install openjdk-17-jdk-headless)",
    "javac": "a Java 17 JDK (Debian: apt-get install openjdk-17-jdk-headless)",
    "mvn": "Maven (Debian: apt-get install maven)",
    "go": "Go 1.24 or newer (https://go.dev/dl)",
    "openssl": "OpenSSL (Debian: apt-get install openssl)",
}


def missing(*tools: str) -> str:
    """What of `tools` is not here and how to get it; empty when all is there."""
    lacking = [name for name in tools if shutil.which(name) is None]
    if lacking:
        return (
            f"{' and '.join(lacking)} not found; install "
            f"{' and '.join(_HOW[name] for name in lacking)}"
        )
    if "java" in tools and (version := _java_version()) < _JAVA:
        return f"java is version {version}; install {_HOW['java']} and put it first on PATH"
    return ""


@functools.cache
def _java_version() -> int:
    done = subprocess.run(
        ["java", "-version"],  # noqa: S607 - the one on PATH is the one that will be used
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found[1]) if found else 0


def postgres_bin() -> Path | None:
    """The directory of `initdb` and `postgres`, the newest version first."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = [
        path
        for pattern in _POSTGRES_HOMES
        for path in Path("/").glob(pattern.lstrip("/"))
        if (path / "initdb").exists()
    ]
    return max(found, key=_version_of, default=None)


def _version_of(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", str(path)))


def missing_postgres() -> str:
    """Why no PostgreSQL can be started here; empty when one can."""
    if postgres_bin() is not None:
        return ""
    return (
        "PostgreSQL's server programs not found; install them (Debian: apt-get install postgresql)"
    )
