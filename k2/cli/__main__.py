"""`python -m k2.cli` is `k2`."""

from k2.cli.main import cli

cli()
