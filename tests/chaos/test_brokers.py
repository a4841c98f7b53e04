"""Brokers for the drills."""

from __future__ import annotations

from pathlib import Path

import pytest

from k2.chaos import brokers
from tests.services.require import require_services


@pytest.mark.kafka
def test_a_cluster_id_may_begin_with_a_dash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sixty-fourth does, and the tool takes it for an option."""
    require_services("kafka")
    ident = "-4L6g3nShT-eMCtK--X86s"
    monkeypatch.setattr(brokers, "new_cluster_id", lambda: ident)
    (node,) = brokers.Brokers(tmp_path, 1).nodes
    node.service.prepare()
    meta = (tmp_path / "broker-1" / "data" / "meta.properties").read_text()
    assert f"cluster.id={ident}" in meta.splitlines()
