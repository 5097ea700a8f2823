"""A pytest plugin that makes the services unimportable: the core has to work without them.

python -m pytest -p tests.core_only tests/denoise
"""

import sys
from importlib.abc import MetaPathFinder

SERVICES = {"ray", "mlflow", "optuna", "boto3", "botocore", "dvc"}


class Refuse(MetaPathFinder):
    """Refuses to find the services."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in SERVICES:
            raise ImportError(f"{fullname} is a service: the core may not import it")


def pytest_configure():
    """Refuse from before the first test is collected."""
    assert not SERVICES & set(sys.modules)
    sys.meta_path.insert(0, Refuse())
