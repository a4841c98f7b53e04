from tests.e2e.cluster import cluster

__all__ = ["cluster"]
