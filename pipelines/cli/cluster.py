"""``denoise cluster`` and ``denoise submit``: check a Ray cluster, and send it a command."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from denoise.errors import UsageError, UserError, nearest
from pipelines.cli.common import AsJson, Overrides, Settings, all_overrides, answer, configuration
from pipelines.console import say

if TYPE_CHECKING:
    from pipelines.cluster.package import PackedFile
    from pipelines.doctor.findings import Finding

app = typer.Typer(help="Check a Ray cluster.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Check a Ray cluster."""


@app.command()
def check(overrides: Overrides = None, settings: Settings = None, as_json: AsJson = False) -> None:
    """Say what is wrong with the cluster at ray.address: its token, and every host's versions, storage, clock, GPUs.

    The exit code is 1 where there is a problem.

    Example: denoise cluster check ray.address=10.0.0.1:6379 ray.storage=s3://bucket/runs
    """
    from pipelines.doctor.check import check_cluster

    findings = check_cluster(configuration(all_overrides(overrides, settings)))
    answer([asdict(finding) for finding in findings], "\n".join(map(_line, findings)), as_json)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def submit(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What follows denoise, e.g. train.")],
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="Ray's dashboard. Default: RAY_API_SERVER_ADDRESS, else loopback.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="ID", help="Name of the job. Default: made of the command.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command and the files that would be sent; send nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job until it ends.")] = True,
    as_json: AsJson = False,
) -> None:
    """Send a denoise command to a cluster, with this folder, and follow what it prints; Ctrl-C leaves it running.

    Example: denoise submit -- tune tpe-asha ray.workers=1 ray.storage=s3://bucket/runs tracking.uri=http://mlflow:5000
    """
    from pipelines.cluster import jobs, package

    _check_command(context, command)
    jobs.refuse_passwords(command)
    if local := jobs.job_local_settings(command, configuration):
        say(
            f"warning: {', '.join(local)} is in the folder of the job, which Ray deletes; name a server, s3:// or a "
            "folder that all hosts share"
        )
    with package.packed_folder() as folder:
        package.refuse_passwords(folder)
        if dry_run:
            _show_package(jobs.entrypoint(command), package.packed_files(folder), as_json)
            return
        job = jobs.submit(command, folder, address, name)
    say(f"job {job.name} at {job.address}; {job.hint}")
    document = {"job": job.name, "address": job.address, "state": "PENDING"}
    if not wait:
        answer(document, job.name, as_json)
        return
    try:
        document["state"] = jobs.follow(job, sys.stderr if as_json else sys.stdout)
    except KeyboardInterrupt:
        say(f"left running; {job.hint}")
        raise typer.Exit(130) from None
    failure = jobs.failure_message(job, document["state"])
    if as_json:
        answer(document, "", as_json)
    if failure:
        raise UserError(failure)


def _show_package(entrypoint: str, files: "list[PackedFile]", as_json: bool) -> None:
    """Print the command and the files that would be sent."""
    total = sum(file.bytes for file in files)
    lines = [f"{file.bytes:>12,}  {file.path}" for file in files]
    text = "\n".join([*lines, f"{total:>12,}  bytes in {len(files)} files would be sent, to run: {entrypoint}"])
    document = {"entrypoint": entrypoint, "files": [file._asdict() for file in files], "bytes": total}
    answer(document, text, as_json)


def _check_command(context: typer.Context, command: list[str]) -> None:
    """Raise the UsageError that denoise would raise on the cluster, before anything is sent."""
    group: Any = context.find_root().command
    path = "denoise"
    for word in command:
        known = [name for name in group.commands if name != "submit"]
        if word not in known:
            raise UsageError(f"{path} {word} is not a command{nearest(word, known)}; denoise --help lists them.")
        group, path = group.commands[word], f"{path} {word}"
        if not hasattr(group, "commands"):
            return


def _line(finding: "Finding") -> str:
    return f"{finding.state:7}  {finding.check:8}  {finding.says}"
