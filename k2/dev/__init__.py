"""The production services on one machine, without containers: Kafka, registry, S3, catalog, SQL.

Each service is one module that says what it needs, what it downloads once, how it is started and
how its health is seen. `k2 dev` keeps them running beside a developer; the tests start the same.
"""
