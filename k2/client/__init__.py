"""An async client of K2's HTTP interface: typed, answers as Arrow tables."""

from k2.client.client import K2Client
from k2.client.figures import Series
from k2.client.rows import Rows
from k2.errors import (
    ApiAccessError,
    ApiBusyError,
    ApiError,
    ApiNotFoundError,
    ApiRequestError,
    ApiUnreachableError,
)

__all__ = [
    "ApiAccessError",
    "ApiBusyError",
    "ApiError",
    "ApiNotFoundError",
    "ApiRequestError",
    "ApiUnreachableError",
    "K2Client",
    "Rows",
    "Series",
]
