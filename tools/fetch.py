"""Download or build the servers the tests start, once per machine.

A test's own time is not for that: building one of them takes longer than most tests may.
"""

from __future__ import annotations

import sys

from k2.dev.stack import SERVICES
from k2.errors import ConfigError

for service in SERVICES:
    if service.missing():
        continue
    try:
        service.fetch()
    except ConfigError as exc:
        # The tests that need it say so, too.
        sys.stderr.write(f"{exc.message}\n")
