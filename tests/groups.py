"""Which test files share what takes long to start: they stay together on one worker of pytest-xdist, the longest first.

pytest-xdist's own ``--dist loadgroup`` knows groups by a mark, but not with pytest 9.2 (pytest-xdist#1386).
"""

from xdist.scheduler import LoadScopeScheduling

GROUPS = {
    "tests/pipelines/test_pipeline.py": "ray",
    "tests/pipelines/test_pages.py": "ray",
    "tests/pipelines/test_secrets.py": "ray",
    "tests/pipelines/cluster/test_jobs.py": "ray",
    "tests/pipelines/doctor/test_check.py": "ray",
    "tests/pipelines/tuning/test_sweep.py": "ray",
    "tests/pipelines/tracking/test_lifecycle.py": "mlflow",
    "tests/pipelines/tracking/test_logger.py": "mlflow",
    "tests/pipelines/test_data_versions.py": "versions",
}


def group_of(nodeid: str) -> str | None:
    """Return the group of a test, None for one that any worker may run."""
    return GROUPS.get(nodeid.partition("::")[0])


class GroupScheduling(LoadScopeScheduling):
    """Gives each worker a whole group, or a single test of none."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid) or nodeid
