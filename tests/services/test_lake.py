"""The lake's behaviour on REST and S3, and on PostgreSQL with S3 and with files.

The tests are those of `tests/lake`, on other lakes.
"""

from __future__ import annotations

import pytest

from k2.lake.catalog import open_catalog
from k2.lake.tables import ensure_tables

# Fixtures and tests under their own names: pytest finds them here.
from tests.lake.test_reader import (  # noqa: F401
    reader,
    test_a_new_snapshot_reads_only_its_new_manifest,
    test_current_follows_commits_and_a_pin_stays,
    test_pruning_keeps_exactly_what_may_match,
    test_time_travel_by_time_and_by_id,
    writer,
)
from tests.lake.test_tables import (  # noqa: F401
    test_a_column_of_another_type_is_refused,
    test_opening_again_changes_nothing,
    test_tables_are_created_as_defined,
)
from tests.lake.test_writer import (  # noqa: F401
    clock,
    test_a_commit_without_rows_moves_only_the_vector,
    test_a_fault_neither_loses_nor_repeats_rows,
    test_a_lost_reply_is_found_without_a_second_commit,
    test_a_zombie_is_refused_and_leaves_no_file,
    test_a_zombie_that_loses_the_race_is_refused,
    test_rows_and_vector_land_together,
    test_the_vector_is_found_below_snapshots_of_other_engines,
    test_the_vector_keeps_other_places,
    test_writers_of_disjoint_places_all_land,
)
from tests.lake.test_writer import (
    test_manifests_and_snapshots_stay_few as _manifests_and_snapshots_stay_few,
)
from tests.services.lakes import lake_settings  # noqa: F401


@pytest.fixture
def catalog(lake_settings):  # noqa: F811
    opened = open_catalog(lake_settings)
    ensure_tables(opened, lake_settings.iceberg.compression)
    yield opened
    opened.close()


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_snapshots_expire_and_files_go(catalog, clock):  # noqa: F811
    _manifests_and_snapshots_stay_few(catalog, clock)
