"""``denoise cluster`` and ``denoise submit``: a Ray cluster, and work that is sent there."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from denoise.errors import UsageError, UserError, nearest
from pipelines.cli.common import AsJson, answer, configuration

if TYPE_CHECKING:
    from pipelines.doctor.findings import Finding

app = typer.Typer(help="Look at a Ray cluster.", no_args_is_help=True, rich_markup_mode=None)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of params.yaml.")]


@app.callback()
def _group() -> None:
    """Look at a Ray cluster."""


@app.command()
def check(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what is wrong with the cluster at ray.address: its token, and every host's versions, storage, clock, GPUs.

    The exit code is 1 where there is a problem.

    Example: denoise cluster check ray.address=10.0.0.1:6379 ray.storage=s3://bucket/runs
    """
    from pipelines.doctor.check import check_cluster

    findings = check_cluster(configuration(overrides))
    answer([asdict(one) for one in findings], "\n".join(map(_line, findings)), as_json)
    if any(one.state == "problem" for one in findings):
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
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job until it ends.")] = True,
    as_json: AsJson = False,
) -> None:
    """Send a denoise command to a cluster, with this folder, and follow what it prints; Ctrl-C leaves it running.

    Example: denoise submit -- tune tpe-asha ray.workers=1 ray.storage=s3://bucket/runs tracking.uri=http://mlflow:5000
    """
    from pipelines.cluster import jobs

    _check_command(context, command)
    if lost := jobs.lost(command, configuration):
        print(
            f"warning: {', '.join(lost)} is in the folder of the job, which Ray deletes; name a server, s3:// or a "
            "folder that all hosts share",
            file=sys.stderr,
        )
    job = jobs.submit(command, address, name)
    print(f"job {job.name} at {job.address}; {job.hint}", file=sys.stderr)
    document = {"job": job.name, "address": job.address, "state": "PENDING"}
    if not wait:
        answer(document, job.name, as_json)
        return
    try:
        document["state"] = jobs.follow(job, sys.stderr if as_json else sys.stdout)
    except KeyboardInterrupt:
        print(f"left running; {job.hint}", file=sys.stderr)
        raise typer.Exit(130) from None
    failed = jobs.failure(job, document["state"])
    if as_json:
        answer(document, "", as_json)
    if failed:
        raise UserError(failed)


def _check_command(context: typer.Context, command: list[str]) -> None:
    """Refuse what denoise would refuse there, before anything is sent."""
    group: Any = context.find_root().command
    path = "denoise"
    for word in command:
        known = [one for one in group.commands if one != "submit"]
        if word not in known:
            raise UsageError(f"{path} {word} is not a command{nearest(word, known)}; denoise --help lists them.")
        group, path = group.commands[word], f"{path} {word}"
        if not hasattr(group, "commands"):
            return


def _line(finding: "Finding") -> str:
    return f"{finding.state:7}  {finding.check:8}  {finding.says}"
