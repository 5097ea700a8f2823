"""What ``denoise submit`` sends: the current folder as Ray packs it, without data, results and secrets."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from denoise.errors import UserError
from denoise.redaction import has_password, without_passwords

# In the syntax of .gitignore; Ray also excludes what .gitignore and .rayignore name.
MADE = (
    *(".git/", ".venv/", "/data/", "/runs/", "/models/", "/mlartifacts/", "/sweeps/", "/studies/", "*.db"),
    *("*.db-*", "/.dvc/cache/", "/.dvc/tmp/"),
)
SECRETS = (
    *(".env*", "*.env", ".secrets*", "secrets.y*ml", "secrets.toml", "secrets.json"),
    *(".aws/", ".azure/", ".config/gcloud/", ".docker/", ".gnupg/", ".kube/", ".ray/", ".ssh/", ".dvc/config.local"),
    *(".netrc", "_netrc", ".pgpass", "pgpass.conf", ".my.cnf", ".boto", ".s3cfg", ".pypirc", ".npmrc"),
    *(".git-credentials", ".htpasswd", "credentials", "credentials.json", "auth_token", ".*_history"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.p8", "*.ppk", "*.jks", "*.keystore", "*.kdbx"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
)
EXCLUDED = (*MADE, *SECRETS)
CONFIGURATION = (".yaml", ".yml", ".json", ".toml", ".ini", ".cfg", ".lock")  # suffixes of files with addresses in them
CONFIGURATION_BYTES = 1 << 20  # what is longer is no configuration

REMEDY = (
    "leave it out of the address and set it on the cluster's hosts: PGPASSWORD or ~/.pgpass for PostgreSQL, "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for MLflow, ~/.netrc for web addresses, AWS_ACCESS_KEY_ID "
    "and AWS_SECRET_ACCESS_KEY for S3 (docs/security.md)"
)


class PackedFile(NamedTuple):
    """A file that is sent."""

    path: str  # relative to the folder
    bytes: int


@contextmanager
def packed_folder() -> Iterator[Path]:
    """Pack the current folder, and hand out the zip file that is to be sent; it is deleted afterwards.

    Raises:
        UserError: a file cannot be packed.
    """
    # Private, but only Ray itself knows what of a folder it leaves out.
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    silent = logging.Logger("packing", logging.CRITICAL)
    gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    with tempfile.TemporaryDirectory(prefix="denoise-submit-") as work:
        package = Path(work) / "folder.zip"
        try:
            excludes = [*get_runtime_env_default_excludes(), *EXCLUDED]
            create_package(".", package, gitignore, excludes=excludes, logger=silent)
        except (OSError, ValueError) as error:  # ValueError: a name that is not UTF-8
            raise UserError(
                f"this folder cannot be packed ({without_passwords(str(error))}); name what should not be sent in "
                ".gitignore."
            ) from None
        yield package


def packed_files(package: Path) -> list[PackedFile]:
    """Return the files of a package, sorted by path."""
    with ZipFile(package) as archive:
        return sorted(PackedFile(entry.filename, entry.file_size) for entry in archive.infolist() if not entry.is_dir())


def refuse_passwords(package: Path) -> None:
    """Refuse a package in which a configuration file holds an address with a password.

    Raises:
        UserError: there is one; the message names the file and the line.
    """
    with ZipFile(package) as archive:
        for file in packed_files(package):
            is_configuration = file.path.endswith(CONFIGURATION) or file.path == ".dvc/config"
            if not is_configuration or file.bytes > CONFIGURATION_BYTES:
                continue
            for number, line in enumerate(archive.read(file.path).decode(errors="replace").splitlines(), start=1):
                if has_password(line.strip()):
                    raise UserError(
                        f"line {number} of {file.path} holds a password, which would be sent to the cluster with this "
                        f"folder; {REMEDY}."
                    )
