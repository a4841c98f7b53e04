"""Settings of services that only make sense together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr

from k2.errors import ConfigError

if TYPE_CHECKING:
    from k2.setting_lake import Iceberg
    from k2.settings import Kafka


def check_services(kafka: Kafka, iceberg: Iceberg) -> None:
    """Raises `ConfigError` naming what is missing to log in."""
    _check_login(kafka)
    _check_s3(iceberg)


def _check_login(kafka: Kafka) -> None:
    """A client without a name or key would only time out."""
    if kafka.security_protocol.startswith("SASL"):
        for name in ("sasl_username", "sasl_password"):
            value = getattr(kafka, name)
            if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
                raise ConfigError(
                    f"K2_KAFKA_{name.upper()} is empty while K2_KAFKA_SECURITY_PROTOCOL is "
                    f"{kafka.security_protocol!r}; set it, or choose a protocol without SASL",
                    variable=f"K2_KAFKA_{name.upper()}",
                )
    if kafka.ssl_key_file and not kafka.ssl_cert_file:
        raise ConfigError(
            f"K2_KAFKA_SSL_KEY_FILE={kafka.ssl_key_file!r} has no use without "
            "K2_KAFKA_SSL_CERT_FILE; set both",
            variable="K2_KAFKA_SSL_KEY_FILE",
        )


def _check_s3(iceberg: Iceberg) -> None:
    """Queries read S3 with these keys; they know no other way."""
    if iceberg.warehouse.startswith("s3"):
        for name in ("s3_access_key", "s3_secret_key"):
            if not getattr(iceberg, name).get_secret_value():
                variable = f"K2_ICEBERG_{name.upper()}"
                raise ConfigError(
                    f"{variable} is empty while K2_ICEBERG_WAREHOUSE is "
                    f"{iceberg.warehouse!r}; set it, or {variable}_FILE",
                    variable=variable,
                )
