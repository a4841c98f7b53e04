"""Faust's transport, by record batches: Kafka and the embedded log."""
