"""Findings of a cluster check: a state and a message for each check, from the answers of all hosts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CLOCK_TOLERANCE = 1.0  # seconds by which two clocks may differ
THIS_MACHINE = "this machine"

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    check: str
    state: State
    says: str  # the message, one sentence without the full stop
    hosts: tuple[str, ...] = ()  # concerned; empty: the cluster as a whole


def by_host(
    check: str, ok_message: str, errors: Mapping[str, str], hint: str = "", state: State = "problem"
) -> list[Finding]:
    """Return the findings of a check on several hosts, one for each distinct error.

    Args:
        check: name of the check.
        ok_message: what the finding says where there are no errors.
        errors: error message by host.
        hint: what to do about the errors.
        state: of the errors.
    """
    if not errors:
        return [Finding(check, "ok", ok_message)]
    findings = []
    for error in dict.fromkeys(errors.values()):
        hosts = tuple(host for host, message in errors.items() if message == error)
        says = f"{', '.join(hosts)}: {error}" + (f"; {hint}" if hint else "")
        findings.append(Finding(check, state, says, hosts))
    return findings


def errors_by_host(answers: Mapping[str, object], driver_error: str | None = None) -> dict[str, str]:
    """Return the answers that are error messages, by host, and first the driver's own error if there is one."""
    errors = {host: answer for host, answer in answers.items() if isinstance(answer, str)}
    return {**({THIS_MACHINE: driver_error} if driver_error else {}), **errors}


def compare_versions(answers: Mapping[str, object], expected: Mapping[str, str]) -> list[Finding]:
    """Compare the versions on the hosts with those of the driver."""
    errors = errors_by_host(answers)
    for host, answer in answers.items():
        if isinstance(answer, Mapping):
            names = [name for name in expected if answer.get(name) != expected[name]]
            if names:
                errors[host] = ", ".join(f"{name} {answer.get(name)} (here {expected[name]})" for name in names)
    ok_message = ", ".join(f"{name} {version}" for name, version in expected.items())
    return by_host("versions", ok_message, errors, "install the versions of constraints.txt everywhere")


def compare_clocks(answers: Mapping[str, tuple[float, float] | str]) -> list[Finding]:
    """Check (offset from the driver's clock, uncertainty of that), in seconds, of each host."""
    errors, largest = errors_by_host(answers), 0.001
    for host, answer in answers.items():
        if isinstance(answer, str):
            continue
        offset, uncertainty = answer
        largest = max(largest, abs(offset) + uncertainty)
        if abs(offset) - uncertainty > CLOCK_TOLERANCE:
            errors[host] = f"the clock is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} this machine's"
    ok_message = f"all clocks are within {largest:.3f} s of this machine's"
    return by_host("clock", ok_message, errors, "synchronise the hosts by NTP (timedatectl, chrony)")


def compare_gpus(answers: Mapping[str, object], offered: Mapping[str, int]) -> list[Finding]:
    """Compare the number of GPUs that Ray offers on each host with the number that torch sees there."""
    missing, unused = errors_by_host(answers), dict[str, str]()
    for host, count in answers.items():
        if isinstance(count, int) and count < offered[host]:
            missing[host] = f"Ray offers {offered[host]} GPUs, torch sees {count}"
        elif isinstance(count, int) and count > offered[host]:
            unused[host] = f"torch sees {count} GPUs, Ray offers {offered[host]}"
    total = sum(offered.values())
    ok_message = f"torch sees the {total} GPUs that Ray offers" if total else "there are none; workers compute on CPUs"
    if not missing and not unused:
        return [Finding("gpus", "ok", ok_message)]
    return [
        *(by_host("gpus", ok_message, missing, "install a torch that fits the host's driver") if missing else []),
        *(by_host("gpus", ok_message, unused, "start Ray there with --num-gpus", "warning") if unused else []),
    ]


def check_capacity(capacity: int, workers: int, min_workers: int | None) -> Finding:
    """Compare the number of workers that the cluster has room for with ray.workers and ray.min_workers."""
    if capacity >= workers:
        return Finding("room", "ok", f"there is room for ray.workers={workers}")
    least = min_workers or workers
    if capacity >= least:
        return Finding("room", "warning", f"there is room for {capacity} of {workers} workers; a run uses only those")
    return Finding(
        "room",
        "warning",
        f"there is room for {capacity} of {least} workers; a run would wait for more hosts: add some, or lower "
        "ray.workers or ray.min_workers",
    )
