"""The permanent store: Apache Iceberg tables."""
