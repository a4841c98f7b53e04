"""What is downloaded or built once and kept outside the repository."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from k2.dev.process import die_with_parent
from k2.errors import ConfigError

_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/k2`, by default `~/.cache/k2`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "k2"


def cached(name: str, part: str, make: Callable[[Path], None]) -> Path:
    """The directory `name/part` of the cache; when it is not there, `make` fills it.

    It appears in one step, so a download that was cut off is made again, and two runs that start
    together make it once.
    """
    home = cache_root() / name
    done = home / part
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_dir():
            partial = home / f"{part}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(done)
    return done


def run(
    command: list[str],
    failure: str,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    text: str | None = None,
) -> str:
    """Run a tool to its end; its output. Raises `ConfigError` with `failure` and its last lines."""
    done = subprocess.run(  # noqa: S603
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **env} if env else None,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        input=text,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise ConfigError(f"{failure}: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


def maven_dependencies(pom: str, into: Path, what: str) -> None:
    """Fetch the jars of a `pom.xml` and all they need."""
    file = into.parent / "pom.xml"
    file.write_text(pom, encoding="utf-8")
    run(
        [
            *("mvn", "-q", "-B", "-f", str(file), f"{_DEPENDENCIES}:copy-dependencies"),
            f"-DoutputDirectory={into}",
        ],
        f"Maven did not fetch the jars of {what}; see its settings for mirrors and proxies",
    )


def maven_artifact(coordinates: str, into: Path, what: str) -> Path:
    """Fetch one artifact (`group:name:version:type:classifier`); the file."""
    run(
        [
            *("mvn", "-q", "-B", f"{_DEPENDENCIES}:copy", f"-Dartifact={coordinates}"),
            *(f"-DoutputDirectory={into}", "-Dmdep.useBaseVersion=true"),
        ],
        f"Maven did not fetch {what}; see its settings for mirrors and proxies",
    )
    return next(path for path in into.iterdir() if path.is_file())
