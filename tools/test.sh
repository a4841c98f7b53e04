#!/usr/bin/env bash
# Run pytest with branch coverage; arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m pytest --cov --cov-report=term --cov-fail-under=85 "$@"
