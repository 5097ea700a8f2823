"""What the answers of a cluster's hosts amount to: a state and a sentence for each thing that was looked at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CLOCK_SECONDS = 1.0  # two clocks may differ by so much
HERE = "this machine"

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: State
    says: str  # one sentence, without the full stop
    hosts: tuple[str, ...] = ()  # that it is about; none: the cluster as a whole


def by_host(check: str, fine: str, bad: Mapping[str, str], hint: str = "", state: State = "problem") -> list[Finding]:
    """Return what was found on several hosts, each sentence once.

    Args:
        check: what was looked at.
        fine: what to say where nothing is wrong.
        bad: what is wrong, by host.
        hint: what to do about it.
        state: of what is wrong.
    """
    if not bad:
        return [Finding(check, "ok", fine)]
    told = []
    for reason in dict.fromkeys(bad.values()):
        hosts = tuple(host for host, one in bad.items() if one == reason)
        told.append(Finding(check, state, f"{', '.join(hosts)}: {reason}" + (f"; {hint}" if hint else ""), hosts))
    return told


def wrong(answers: Mapping[str, object], here: str | None = None) -> dict[str, str]:
    """Return the sentences among answers that are None where all is well; ``here`` is this machine's own."""
    told = {host: answer for host, answer in answers.items() if isinstance(answer, str)}
    return {**({HERE: here} if here else {}), **told}


def compare_versions(answers: Mapping[str, object], mine: Mapping[str, str]) -> list[Finding]:
    """Compare the versions on the hosts with those of the driver."""
    bad = wrong(answers)
    for host, answer in answers.items():
        if isinstance(answer, Mapping):
            others = [name for name in mine if answer.get(name) != mine[name]]
            if others:
                bad[host] = ", ".join(f"{name} {answer.get(name)} (here {mine[name]})" for name in others)
    fine = ", ".join(f"{name} {version}" for name, version in mine.items())
    return by_host("versions", fine, bad, "install the versions of constraints.txt everywhere")


def compare_clocks(answers: Mapping[str, tuple[float, float] | str]) -> list[Finding]:
    """Judge how far the clocks of the hosts are ahead of the driver's, each with its uncertainty, in seconds."""
    bad, most = wrong(answers), 0.001
    for host, answer in answers.items():
        if isinstance(answer, str):
            continue
        ahead, unsure = answer
        most = max(most, abs(ahead) + unsure)
        if abs(ahead) - unsure > CLOCK_SECONDS:
            bad[host] = f"the clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    fine = f"all clocks are within {most:.3f} s of this machine's"
    return by_host("clock", fine, bad, "keep the hosts' time by NTP (timedatectl, chrony)")


def compare_gpus(answers: Mapping[str, object], offered: Mapping[str, int]) -> list[Finding]:
    """Compare the GPUs that Ray gives away on each host with those that torch sees there."""
    short, idle = wrong(answers), dict[str, str]()
    for host, seen in answers.items():
        if isinstance(seen, int) and seen < offered[host]:
            short[host] = f"Ray gives away {offered[host]} GPUs, torch sees {seen}"
        elif isinstance(seen, int) and seen > offered[host]:
            idle[host] = f"torch sees {seen} GPUs, Ray gives away {offered[host]}"
    total = sum(offered.values())
    fine = f"torch sees the {total} GPUs that Ray gives away" if total else "there are none; workers compute on CPUs"
    if not short and not idle:
        return [Finding("gpus", "ok", fine)]
    return [
        *(by_host("gpus", fine, short, "install a torch for that host's driver") if short else []),
        *(by_host("gpus", fine, idle, "start Ray there with --num-gpus", "warning") if idle else []),
    ]


def judge_room(found: int, wanted: int, least: int | None) -> Finding:
    """Judge how many workers there is room for, of those that are wanted and those that will do."""
    if found >= wanted:
        return Finding("room", "ok", f"there is room for ray.workers={wanted}")
    if found >= (least or wanted):
        return Finding("room", "warning", f"there is room for {found} of {wanted} workers; a run goes on with those")
    return Finding(
        "room",
        "warning",
        f"there is room for {found} of {least or wanted} workers; a run would wait until hosts come: add some, or "
        "lower ray.workers or ray.min_workers",
    )
