"""Train as one rank of torchrun, or alone, and write the metrics and final weights (run by test_train.py)."""

import json
import sys
from pathlib import Path

from denoise import distributed
from denoise.collection import Collection
from denoise.config import load_config
from denoise.shards import Shards
from denoise.train import train

folder, shards, *overrides = sys.argv[1:]
config = load_config(None, overrides)
pictures = Collection([Shards.open(Path(shards))])
distributed.start_from_environment()
rows = []


def report(metrics, checkpoint):
    rows.append(metrics)


train(config, pictures, pictures, Path(folder), report)
if distributed.rank() == 0:
    (Path(folder) / "rows.json").write_text(json.dumps(rows))
distributed.stop()
