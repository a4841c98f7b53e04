"""How clients authenticate: one place that turns settings into each client's own words."""

from __future__ import annotations

import ssl
from typing import Any

from k2.settings import Kafka


def aiokafka_options(kafka: Kafka) -> dict[str, Any]:
    """Keyword arguments for aiokafka's consumer and producer."""
    options: dict[str, Any] = {"security_protocol": kafka.security_protocol}
    if kafka.security_protocol.endswith("SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=kafka.ssl_ca_file or None)
    if kafka.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
    return options


def librdkafka_options(kafka: Kafka) -> dict[str, Any]:
    """Configuration for confluent-kafka's clients."""
    options: dict[str, Any] = {"security.protocol": kafka.security_protocol}
    if kafka.security_protocol.endswith("SSL") and kafka.ssl_ca_file:
        options["ssl.ca.location"] = kafka.ssl_ca_file
    if kafka.security_protocol.startswith("SASL"):
        options["sasl.mechanism"] = kafka.sasl_mechanism
        options["sasl.username"] = kafka.sasl_username
        options["sasl.password"] = kafka.sasl_password.get_secret_value()
    return options
