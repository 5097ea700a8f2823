"""``denoise demo``: run the whole pipeline on images that are already installed, and show the results."""

import json
import subprocess
import sys
from pathlib import Path

from denoise.config import Config
from denoise.errors import UserError
from pipelines.cluster.head import shared_head

NEXT_STEPS = """\
Next steps (after `source .venv/bin/activate`):
  denoise ui                                         runs, curves, images and models in MLflow
  denoise restore my.png -o restored.png             an image of your own, by the champion
  dvc exp run -S 'data.train=[bsds300]' -S 'data.test=[kodak]' -S evaluate.protocol=laine2019
                                                     train on BSDS300, score on Kodak"""


def run_demo(config: Config) -> None:
    """Run ``dvc repro`` and print its results.

    Raises:
        UserError: this is no checkout of the project, or a stage failed.
    """
    if not Path("dvc.yaml").is_file():
        raise UserError("there is no dvc.yaml here; run `denoise demo` in a checkout of the project.")
    with shared_head(config) as environment:
        pipeline = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], env=environment)
        try:
            code = pipeline.wait()
        except KeyboardInterrupt:
            pipeline.wait()  # the stage that runs has got Ctrl-C, too, and needs Ray until it has ended
            raise
    if code != 0:
        raise UserError("`dvc repro` failed, see above; run it again to continue after the last finished stage.")
    print("\n" + summary(config))


def summary(config: Config) -> str:
    """Return the table of results, where the images and the report are, and what to do next."""
    from pipelines.report.write import table

    rows = json.loads(Path("metrics.json").read_text(encoding="utf-8"))
    champion = json.loads(Path("champion.json").read_text(encoding="utf-8"))
    protocol = config.evaluate.protocol
    folders = [f"evaluation/{method}/{data}/{protocol}" for method in config.compare for data in config.data.test]
    return "\n".join(
        [
            table(rows.values()),
            "",
            f"champion:  models:/{champion['name']}@champion ({champion['method']})",
            f"images:    {', '.join(f'{folder}/images' for folder in folders)}",
            "report:    report/index.html",
            "",
            NEXT_STEPS,
        ]
    )
