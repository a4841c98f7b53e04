"""K2: a market-data platform from exchange WebSockets to SQL over Apache Iceberg."""

__version__ = "0.1.0"
