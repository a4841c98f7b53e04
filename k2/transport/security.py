"""How clients authenticate: one place that turns settings into each client's own words."""

from __future__ import annotations

import ssl
from typing import Any

from k2.errors import ConfigError
from k2.settings import Kafka


def aiokafka_options(kafka: Kafka) -> dict[str, Any]:
    """Keyword arguments for aiokafka's consumer and producer. Raises `ConfigError`."""
    options: dict[str, Any] = {"security_protocol": kafka.security_protocol}
    if kafka.security_protocol.endswith("SSL"):
        options["ssl_context"] = _context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
    return options


def _context(kafka: Kafka) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca_file or None)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"K2_KAFKA_SSL_CA_FILE={kafka.ssl_ca_file!r} is not usable: {exc}; allowed: PEM "
            "certificates",
            variable="K2_KAFKA_SSL_CA_FILE",
        ) from exc
    if not kafka.ssl_cert_file:
        return context
    try:
        context.load_cert_chain(
            kafka.ssl_cert_file,
            kafka.ssl_key_file or None,
            # Always a text: OpenSSL would ask the terminal for a missing one.
            kafka.ssl_key_password.get_secret_value(),
        )
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"K2_KAFKA_SSL_CERT_FILE={kafka.ssl_cert_file!r} with K2_KAFKA_SSL_KEY_FILE="
            f"{kafka.ssl_key_file!r} is not usable: {exc}; allowed: a PEM certificate and its key, "
            "and K2_KAFKA_SSL_KEY_PASSWORD when that is encrypted",
            variable="K2_KAFKA_SSL_CERT_FILE",
        ) from exc
    return context


def librdkafka_options(kafka: Kafka) -> dict[str, Any]:
    """Configuration for confluent-kafka's clients."""
    options: dict[str, Any] = {"security.protocol": kafka.security_protocol}
    if kafka.security_protocol.endswith("SSL"):
        files = {
            "ssl.ca.location": kafka.ssl_ca_file,
            "ssl.certificate.location": kafka.ssl_cert_file,
            "ssl.key.location": kafka.ssl_key_file or kafka.ssl_cert_file,
            "ssl.key.password": kafka.ssl_key_password.get_secret_value(),
        }
        options |= {name: value for name, value in files.items() if value}
    if kafka.security_protocol.startswith("SASL"):
        options["sasl.mechanism"] = kafka.sasl_mechanism
        options["sasl.username"] = kafka.sasl_username
        options["sasl.password"] = kafka.sasl_password.get_secret_value()
    return options


def advice(kafka: Kafka) -> str:
    """What to look at when a broker refuses us; no secret is in it."""
    words = [f"see K2_KAFKA_SECURITY_PROTOCOL={kafka.security_protocol}"]
    if kafka.security_protocol.endswith("SSL"):
        words.append(f"K2_KAFKA_SSL_CA_FILE={kafka.ssl_ca_file}")
    if kafka.security_protocol.startswith("SASL"):
        words += [
            f"K2_KAFKA_SASL_MECHANISM={kafka.sasl_mechanism}",
            f"K2_KAFKA_SASL_USERNAME={kafka.sasl_username}",
            "K2_KAFKA_SASL_PASSWORD",
        ]
    return ", ".join(words)
