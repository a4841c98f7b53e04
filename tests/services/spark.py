"""Spark from the package index, in an environment of its own: it reads tables by their metadata."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from k2.dev import tools
from k2.dev.cache import cached, maven_artifact, run

VERSION: Final = "3.5.6"
#: Before 1.11 its vectorised reader does not know the encoding of K2's ids.
_ICEBERG: Final = "org.apache.iceberg:iceberg-spark-runtime-3.5_2.12:1.11.0"
_SCRIPT: Final = Path(__file__).with_name("spark_script.py")


def missing() -> str:
    """What Spark lacks here and the remedy; empty when all is there."""
    return tools.missing("java", "mvn")


def _install(into: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    packages = [f"pyspark=={VERSION}", "py4j==0.10.9.7"]
    run([*command, "--target", str(into), *packages], "pyspark could not be installed")


def _jar(into: Path) -> None:
    maven_artifact(_ICEBERG, into, "Iceberg for Spark (45 MB)")


def ask(metadata: str, questions: Sequence[tuple[int, str]]) -> list[list[list[Any]]]:
    """The rows of each (snapshot id, SQL over `trades`) of the table at `metadata`.

    Raises `ConfigError` with Spark's words.
    """
    site = cached(f"pyspark-{VERSION}", "site", _install)
    (jar,) = cached("iceberg-spark-1.11.0", "jar", _jar).glob("*.jar")
    asked = json.dumps({"jar": str(jar), "metadata": metadata, "questions": questions})
    environment = {"PYTHONPATH": str(site), "SPARK_LOCAL_IP": "127.0.0.1"}
    if "JAVA_HOME" in os.environ:
        environment["JAVA_HOME"] = os.environ["JAVA_HOME"]
    told = run([sys.executable, str(_SCRIPT)], "Spark did not answer", env=environment, text=asked)
    answers: list[list[list[Any]]] = json.loads(told.strip().splitlines()[-1])
    return answers
