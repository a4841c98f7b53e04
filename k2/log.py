"""Logs: structlog for K2, Faust and aiokafka alike, JSON unless a person is watching.

`bind_correlation` puts an id on every line that a batch or a request causes.
"""

from __future__ import annotations

import logging
import logging.config
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from k2.log_sampling import Sampling
from k2.settings import Settings

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]

#: Libraries that say at INFO what nobody on call needs.
_QUIET = ("aiokafka", "pyiceberg", "urllib3", "faust", "mode")
#: … except these, which say when a worker is ready and why it stops.
_HEARD = ("faust.worker", "faust.app.base")


def json_lines(log_format: str) -> bool:
    """Whether standard error carries JSON objects, one a line, and nothing else."""
    return log_format == "json" or (log_format != "console" and not sys.stderr.isatty())


def formatter_config(settings: Settings) -> dict[str, Any]:
    """A `logging.config` dictionary; Faust's worker is given the same one."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json_lines(settings.core.log_format)
        else structlog.dev.ConsoleRenderer()
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "k2": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": _SHARED,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    renderer,
                ],
            }
        },
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "k2",
                "filters": ["sampling"],
            }
        },
        "filters": {"sampling": {"()": Sampling}},
        "loggers": {
            **{name: {"level": "WARNING"} for name in _QUIET},
            **{name: {"level": settings.core.log_level} for name in _HEARD},
        },
        "root": {"level": settings.core.log_level, "handlers": ["stderr"]},
    }


def configure_structlog() -> None:
    """Send structlog's events through the standard library's handlers."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def configure(settings: Settings) -> None:
    """Configure logging of a command-line process (the worker is configured by Faust)."""
    logging.config.dictConfig(formatter_config(settings))
    configure_structlog()


def configure_quietly(settings: Settings) -> None:
    """The same, warnings and errors only: for commands whose standard output is their answer."""
    quiet = settings.core.model_copy(update={"log_level": "WARNING"})
    configure(settings.model_copy(update={"core": quiet}))


@contextmanager
def bind_correlation(**ids: object) -> Iterator[None]:
    """Put `ids` on every line logged inside the block."""
    with structlog.contextvars.bound_contextvars(**ids):
        yield
