"""Schemas, registry, and Avro to Arrow and back."""
