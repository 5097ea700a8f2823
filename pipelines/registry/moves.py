"""Moves of @champion: one at a time, also through a server, which has no lock, and each of them recorded.

A record is a tag of the registered model. Its key is of its writer alone, so that none overwrites another's. A move

    1. reads the records and the alias, and decides;
    2. writes its record, marked as pending, and reads again: with any other new record it withdraws and tries again;
    3. sets the alias, reads again, and takes the mark away.

Of two moves that overlap at least one sees the other's record in step 2. A record that stays pending is of a process
that was killed or is stopped: the next move settles it, and a process that goes on later finds its record gone, puts
the alias back and tries again.
"""

import json
import random
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from denoise.documents import parse_json
from denoise.errors import UserError
from pipelines.console import say
from pipelines.registry.rows import CHAMPION
from pipelines.tracking.client import user

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = re.compile(r"promotion\.(\d{4,9})(\.[0-9a-f]{8})?")  # promotion.0002.5be3a1f0; 0.1.0 wrote promotion.0002
PENDING = "pending"  # the mark, an entry of the record
PATIENCE = 30.0  # seconds after which a pending record counts as left behind
PAUSE = 0.05  # seconds between two looks
ATTEMPTS = 50

Record = dict[str, Any]  # action, who, when, from, to, and the scores


@dataclass(frozen=True)
class Trail:
    """All records of a model's champion, and where the alias points, as one answer of MLflow has them."""

    records: Mapping[str, Record]  # by key
    champion: str | None  # a version

    @property
    def pending(self) -> dict[str, Record]:
        """The records of moves that have not ended."""
        return {key: record for key, record in self.records.items() if PENDING in record}

    @property
    def moves(self) -> list[Record]:
        """The records of moves that have ended, oldest first, each with its number."""
        ended = [(_number(key), record) for key, record in self.records.items() if PENDING not in record]
        return [{"number": number, **record} for number, record in sorted(ended, key=lambda entry: entry[0])]

    @property
    def next_key(self) -> str:
        """A key that nobody else writes, after all that are there."""
        return f"promotion.{max(map(_number, self.records), default=0) + 1:04d}.{secrets.token_hex(4)}"


def read_trail(api: "MlflowClient", name: str) -> Trail:
    """Return the records of a model's champion; tags that are none of ours are left out."""
    model = api.get_registered_model(name)
    records = {key: _parse(text) for key, text in model.tags.items() if KEY.fullmatch(key)}
    champion = model.aliases.get(CHAMPION)
    return Trail(
        {key: record for key, record in records.items() if record}, None if champion is None else str(champion)
    )


def move_champion(
    api: "MlflowClient", name: str, decide: Callable[[Trail], tuple[str, Record] | None], by: str | None
) -> bool:
    """Point @champion to what ``decide`` chooses, alone and with a record, and return whether it moved.

    Args:
        api: MLflow's client.
        name: the registered model.
        decide: given the trail, returns the version and what to record, None to leave the champion; it is asked anew
            if another move came between, and may raise.
        by: name for the record; None: the user of this process.

    Raises:
        UserError: others move it all the time.
    """
    for attempt in range(ATTEMPTS):
        trail = _settled(api, name)
        choice = decide(trail)
        if choice is None:
            return False
        version, entries = choice
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"who": by or user(), "when": when, "from": trail.champion, "to": version, **entries}
        if _move(api, name, trail, record):
            return True
        time.sleep(PAUSE * attempt * random.random())
    raise UserError(f"others are moving the champion of {name} all the time; try again later.")


def _move(api: "MlflowClient", name: str, before: Trail, record: Record) -> bool:
    """Set the alias if nothing has happened since ``before``; return whether it is set and recorded."""
    key = before.next_key
    api.set_registered_model_tag(name, key, json.dumps(record | {PENDING: True}))
    now = read_trail(api, name)
    if now.records.keys() - before.records.keys() == {key} and now.champion == before.champion:
        api.set_registered_model_alias(name, CHAMPION, record["to"])
        now = read_trail(api, name)
        if key in now.records and key not in now.pending:  # another process has ended this move
            return True
        if now.champion == record["to"]:
            if key in now.records:
                api.set_registered_model_tag(name, key, json.dumps(record))
                return True
            _put_back(api, name, now)
    if key in now.records:
        api.delete_registered_model_tag(name, key)
    return False


def _put_back(api: "MlflowClient", name: str, trail: Trail) -> None:
    """Point the alias to where the last recorded move left it."""
    if trail.moves:
        api.set_registered_model_alias(name, CHAMPION, trail.moves[-1]["to"])
    else:
        api.delete_registered_model_alias(name, CHAMPION)


def _settled(api: "MlflowClient", name: str) -> Trail:
    """Return the trail once no move is pending; what stays pending for too long is ended or removed."""
    first_seen: dict[str, float] = {}
    while True:
        trail = read_trail(api, name)
        if not trail.pending:
            return trail
        now = time.monotonic()
        if not first_seen and PATIENCE > 1:
            say(f"another process moves the champion of {name}, or was killed; this waits for at most {PATIENCE:g} s.")
        for key, record in trail.pending.items():
            if now - first_seen.setdefault(key, now) < PATIENCE:
                continue
            if trail.champion == record.get("to"):  # it was killed after it had set the alias
                ended = {entry: value for entry, value in record.items() if entry != PENDING}
                api.set_registered_model_tag(name, key, json.dumps(ended))
            else:
                api.delete_registered_model_tag(name, key)
        time.sleep(PAUSE)


def _number(key: str) -> int:
    return int(key.split(".")[1])


def _parse(text: str) -> Record | None:
    try:
        record = parse_json(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"action", "from", "to"} <= record.keys() else None
