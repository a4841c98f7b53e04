"""The embedded log: a Kafka log without the broker."""
