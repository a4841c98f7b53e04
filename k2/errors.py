"""Every error K2 raises on purpose, under one base.

An error names the thing, the value it had, what is allowed and what to do; `details` carries the
same facts as data, for logs and HTTP answers.
"""

from __future__ import annotations

from typing import Any


class K2Error(Exception):
    """Base of all errors raised by K2."""

    code = "k2_error"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class ConfigError(K2Error):
    """A setting, file or topic is not usable as configured; the process must not start."""

    code = "config"


class ServiceError(K2Error):
    """A service that K2 started for tests or development did not start, or ended."""

    code = "service"


class SchemaError(K2Error):
    """A schema is missing, unreadable, or refused by the registry."""

    code = "schema"


class SchemaNotFoundError(SchemaError):
    """The registry has no such schema or subject."""

    code = "schema_not_found"


class SchemaIncompatibleError(SchemaError):
    """The registry refuses a schema that cannot read what was written before it."""

    code = "schema_incompatible"


class RegistryUnavailableError(SchemaError):
    """The schema registry cannot be asked; nothing is known about the schema."""

    code = "registry_unavailable"


class DecodeError(K2Error):
    """Bytes from the log are not a record of the schema they claim."""

    code = "decode"


class LogError(K2Error):
    """The log (Kafka or embedded) cannot do what was asked."""

    code = "log"


class LogLockedError(LogError):
    """Another process holds the embedded log's lock."""

    code = "log_locked"


class LogCorruptError(LogError):
    """The embedded log is damaged somewhere other than in its torn tail."""

    code = "log_corrupt"


class CoverHoleError(LogError):
    """A reader of a validated topic met a range that does not abut the one before."""

    code = "cover_hole"


class RetentionGapError(LogError):
    """The offset to resume from is no longer in the topic."""

    code = "retention_gap"


class DeadLetterLimitError(K2Error):
    """So many records are refused that it must be the deploy, not the data."""

    code = "dead_letter_limit"


class LakeError(K2Error):
    """The lake (catalog, table or files) cannot do what was asked."""

    code = "lake"


class SnapshotNotFoundError(LakeError):
    """The table has no such snapshot, or no longer."""

    code = "snapshot_not_found"


class CommitConflictError(LakeError):
    """Another writer committed first; the commit was not applied."""

    code = "commit_conflict"


class SupersededError(LakeError):
    """What the change was made for is no longer in the table; nothing was changed."""

    code = "superseded"


class StaleWriterError(LakeError):
    """The table holds a newer position for our partitions than the batch starts from."""

    code = "stale_writer"


class StaleBasisError(LakeError):
    """What rows were made from has changed in the table meanwhile: make them again."""

    code = "stale_basis"


class SourceError(K2Error):
    """An exchange session failed or spoke an unexpected protocol."""

    code = "source"


class CaptureError(K2Error):
    """A recorded capture cannot be read."""

    code = "capture"


class TapeError(K2Error):
    """A tape (CSV file) cannot be loaded as asked; nothing of it was."""

    code = "tape"


class QueryError(K2Error):
    """A query was refused or failed for a reason its author can mend."""

    code = "query"


class InvalidParameter(QueryError):
    """A request parameter has a value that is not allowed."""

    code = "invalid_parameter"

    def __init__(self, parameter: str, value: object, allowed: str) -> None:
        shown = value.decode(errors="replace") if isinstance(value, bytes) else value
        if not isinstance(shown, str | int | float | bool | None):
            shown = repr(shown)
        super().__init__(
            f"parameter {parameter!r} has the value {shown!r}; allowed: {allowed}",
            parameter=parameter,
            value=shown,
            allowed=allowed,
        )


class NotFoundError(QueryError):
    """What was asked for is not there."""

    code = "not_found"


class QueryTimeout(QueryError):
    """A query ran past its deadline and was interrupted."""

    code = "query_timeout"


class Overloaded(K2Error):
    """The process refuses work it could not finish; try again after `retry_after_s`."""

    code = "overloaded"


class ApiError(K2Error):
    """A server refused or failed a request; `details` has its `status` and what it said."""

    code = "api"


class ApiAccessError(ApiError):
    """No key, a wrong one, or one without the scope."""

    code = "api_access"


class ApiRequestError(ApiError):
    """The request is wrong; `details` names the parameter, its value and what is allowed."""

    code = "api_request"


class ApiNotFoundError(ApiError):
    """There is nothing for these parameters."""

    code = "api_not_found"


class ApiBusyError(ApiError):
    """Not now: too many requests, or the platform is down; `details["retry_after_s"]`."""

    code = "api_busy"


class ApiUnreachableError(ApiError):
    """No server answered."""

    code = "api_unreachable"
