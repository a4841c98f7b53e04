#!/usr/bin/env bash
# Run pytest with branch coverage; arguments are pytest's.
# K2_TEST_PROCESSES: how many run beside each other (2), each with its own Kafka and other services.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python tools/fetch.py
.venv/bin/python -m pytest -n "${K2_TEST_PROCESSES:-2}" --dist loadfile \
	--cov --cov-report=term --cov-fail-under=85 "$@"
