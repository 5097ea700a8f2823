"""The command line as a user types it: answers, and one sentence for every mistake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import app as cli
from pipelines.cli.common import all_overrides, configuration
from tests.pipelines.cli_helpers import sentence


def run(denoise, *arguments, expect=0):
    done = subprocess.run([*denoise, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stderr
    return sentence(done.stderr) if expect else done.stdout


def test_version(denoise):
    from importlib.metadata import version

    assert run(denoise, "--version") == f"denoise {version('noise2x')}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "trian.steps=3"], 2, "did you mean train.steps"),
        (["train", "-S", "trian.steps=3"], 2, "did you mean train.steps"),
        (["train", "-S", "3"], 2, "'3' is not KEY=VALUE"),
        (["train", "train.steps=none"], 2, "train.steps"),
        (["train", "method=n2v3"], 1, "did you mean n2"),
        (["train", "net=unet"], 1, "unet_n2n"),
        (["train", "noise=gaus25"], 1, "gauss25"),
        (["train", "data.train=smal"], 1, "(did you mean small?)"),
        (["train", "data.train=mine"], 1, "`denoise shard mine --from FOLDER --split train`"),
        (["train", "data.train=kodka"], 1, "(did you mean kodak?)"),
        (["train", "data.train=kodak"], 1, "kodak has test only"),
        (["train", "data.train=bsds300"], 1, "`denoise fetch bsds300 && denoise shard bsds300`"),
        (["train", "data.train=kodka", "data.url=nowhere"], 1, "kodka (did you mean kodak?) is not at nowhere"),
        (["train", "tracking.uri=file:mlruns"], 1, "sqlite"),
        (["train", "preset=laine2019"], 2, "denoise presets"),
        (["train", "method=r2r", "noise=impulse0.5"], 1, "not defined for noise=impulse0.5"),
        (["train", "method=ssdn", "net=dncnn"], 1, "use unet_ssdn"),
        (["train", "method=bm3d"], 1, "needs no training"),
        (["evaluate", "n2v"], 1, "has to be trained first"),
        (["fetch", "kodac"], 1, "did you mean kodak"),
        (["fetch", "kodak", "--split", "tset"], 2, "did you mean test"),
        (["fetch", "kodak", "--mirror", "nowhere"], 1, "nowhere"),
        (["fetch", "imagenet"], 1, "image-net.org"),
        (["fetch", "imagenet", "--mirror", "no/ILSVRC2012"], 1, "no/ILSVRC2012"),
        (["shard", "nothing"], 1, "`denoise shard nothing --from FOLDER`"),
        (["shard", "mine", "--from", "nowhere"], 1, "nowhere"),
        (["shard", "kodka"], 1, "(did you mean kodak?)"),
        (["shard", "kodak"], 1, "`denoise fetch kodak && denoise shard kodak`"),
        (["shard", "imagenet"], 1, "`denoise fetch imagenet --mirror PATH && denoise shard imagenet`"),
        (["data", "show", "kodka"], 1, "(did you mean kodak?)"),
        (["shard", "--from", "nowhere"], 2, "NAME"),
        (["evaluate", "nowhere"], 1, "no model folder"),
        (["evaluate", "nowhere", "--protocol", "lain2019"], 1, "did you mean laine2019"),
        (["restore", "nowhere.png", "-o", "out.png", "--model", "data"], 1, "no model folder"),
        (["models", "register", "nowhere"], 1, "no model folder"),
        (["shard", "mine", "--from", "data", "--only", "gray"], 2, "use grey or colour"),
        (["data", "show", "nothing"], 1, "`denoise shard nothing --from FOLDER`"),
        (["data", "verify", "small", "--split", "tset"], 2, "did you mean test"),
        (["data", "push", "small"], 1, "data.url is not set"),
        (["data", "push", "small", "-S", "data.url=http://127.0.0.1:9"], 1, "can only be read"),
        (["data", "pull", "small", "-S", "data.url=nowhere"], 1, "not at nowhere"),
        (["train", "data.url=ftp://host"], 1, "ftp://host is not understood"),
        (["train", "data.url=nowhere"], 1, "denoise data push small"),
        (["tune", "ee559-randon"], 2, "did you mean ee559-random"),
        (["tune", "tpe-asha", "train.steps=20"], 2, "train.steps cannot be given for this sweep: a trial's length"),
        (["tune", "tpe-asha", "-S", "train.log_every=1"], 2, "train.log_every cannot be given"),
        (["tune", "tpe-asha", "train.lr=0.1"], 2, "train.lr cannot be given for this sweep: it is searched"),
        (["tune", "tpe-asha", "seed=1"], 2, "seed cannot be given"),
        (["tune", "tpe-asha", "preset=n2v-bsd68"], 2, "preset=n2v-bsd68 has no effect"),
        (["tune", "n2v", "train.steps=20"], 2, "give 16 or 24"),
        (["tune", "tpe-asha", "--resume", "nothing", "--images", "9"], 2, "leave SPACE"),
        (["tune", "mine.yaml"], 2, "there is no file mine.yaml"),
        (["tune", "tpe-asha", "--sampler", "tpee"], 2, "sampler"),
        (["tune", "--resume", "nothing"], 1, "there is no sweep nothing"),
        (["tune", "--resume", "nothing", "train.steps=3"], 2, "train.steps cannot change"),
        (["tune", "--resume", "nothing", "-S", "train.steps=3"], 2, "train.steps cannot change"),
        (["tune", "tpe-asha", "-S", "trian.steps=3"], 2, "did you mean train.steps"),
        (["cluster", "check", "-S", "ray.adress=head:6379"], 2, "did you mean ray.address"),
        (["tune", "tpe-asha", "--resume", "nothing"], 2, "leave SPACE"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(project, arguments, code, message, monkeypatch, capfd):
    before = sorted(path for path in project.rglob("*") if path.suffix != ".db")
    monkeypatch.setattr(sys, "argv", ["denoise", *arguments])
    with pytest.raises(SystemExit) as ended:  # in this process: starting one for each takes a minute
        cli.main()
    assert ended.value.code == code
    assert message in sentence(capfd.readouterr().err)
    after = sorted(path for path in project.rglob("*") if not path.name.startswith("mlflow.db"))
    left = [path for path in after if path not in before and "downloads" not in path.parts]
    assert left == []


def test_every_command_that_reads_params_yaml_takes_settings():
    import typer

    def options(group, path):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from options(command, f"{path}{name} ")
            else:
                yield path + name, {option for parameter in command.params for option in parameter.opts}

    without = {name for name, names in options(typer.main.get_command(cli.app), "") if "-S" not in names}
    of_studies = {f"study {name}" for name in ("list", "show", "report", "status")}
    assert without == {"advise", "presets", "submit", *of_studies}  # these take no key of params.yaml


def test_settings_count_after_the_arguments(project):
    config = configuration(all_overrides(["train.steps=3", "seed=1"], ["train.steps=4", "noise=gauss50"]))
    assert (config.train.steps, config.seed, config.noise) == (4, 1, "gauss50")
    assert configuration(all_overrides(None, None)).train.steps == 12


def test_overrides_win_over_a_preset_and_a_preset_over_params_yaml(project):
    config = configuration(["train.crop=48", "preset=r2r-bsd68-sigma25"])
    assert (config.method.name, config.train.crop, config.train.steps) == ("r2r", 48, 93_125)
    (project / "params.yaml").write_text("preset: r2r-bsd68-sigma25\ntrain: {steps: 3}\n")
    assert configuration(None).train.steps == 93_125
    assert configuration(["train.steps=4"]).train.steps == 4


def test_no_image_is_as_large_as_a_crop(project, denoise_fork):
    message = run(denoise_fork, "train", "--local", "data.small=leave_out", "train.crop=256", expect=1)
    assert "none of the 5 training images" in message


def test_params_yaml_with_an_unknown_key(project, denoise_fork):
    (project / "params.yaml").write_text("train: {step: 3}\n")
    assert "did you mean steps" in run(denoise_fork, "train", expect=2)


@pytest.mark.smoke
def test_train_evaluate_and_restore_without_services(project, denoise_fork, small_images, photographs):
    model = json.loads(run(denoise_fork, "train", "--local", "--json", "train.steps=20"))["model"]
    (project / "own").mkdir()
    shutil.copy(photographs / "astronaut.png", project / "own")
    run(denoise_fork, "shard", "own", "--from", "own", "--split", "test")
    results = json.loads(
        run(denoise_fork, "evaluate", model, "--data", "own", "--protocol", "laine2019", "--out", "scores", "--json")
    )
    assert results[0]["protocol"] == "laine2019"
    assert results[0]["data"] == "own"
    assert json.loads((project / "scores/own/laine2019/scores.json").read_text())["psnr"] == results[0]["psnr"]
    names = sorted(path.name for path in (project / "scores/own/laine2019/images").iterdir())
    assert names == ["astronaut-clean.png", "astronaut-noisy.png", "astronaut-restored.png"]
    noisy = small_images / "1-rocket.jpg"
    answer = json.loads(run(denoise_fork, "restore", noisy, "-o", "restored.png", "--model", model, "--json"))
    assert Path(answer[0]["target"]) == Path("restored.png")
    assert (project / "restored.png").is_file()
    shown = run(
        denoise_fork, "restore", noisy, "-o", "tiled.png", "--model", model, "--tile", "64", "--precision", "fp32"
    )
    assert "tiled.png" in shown
    from denoise.images.io import read_image

    whole, tiled = (read_image(project / name).pixels.astype(float) for name in ("restored.png", "tiled.png"))
    assert abs(whole - tiled).mean() < 2


def test_real_noisy_images_from_training_to_a_map_of_the_deviation(project, denoise_fork, photographs):
    from denoise.images.io import DecodedImage, read_image, write_image

    pixels = read_image(photographs / "coffee.png").pixels[:100, :90]
    (project / "own").mkdir()
    for name, dark in (("cup_noisy", 2), ("cup_clean", 1)):  # the noise of a dark image is not the point here
        write_image(project / "own" / f"{name}.png", DecodedImage(pixels // dark))
    for split in ("train", "test"):
        run(denoise_fork, "shard", "own", "--from", "own", "--split", split)
    settings = ["noise=none", "data.train=own", "data.allow_overlap=own", "data.val=own"]
    shutil.copytree(project / "data/shards/train/own", project / "data/shards/val/own")
    settings += ["method=ssdn", "train.steps=2", "train.crop=96", "train.batch_size=1"]
    model = json.loads(run(denoise_fork, "train", "--local", "--json", *settings))["model"]
    (result,) = json.loads(
        run(denoise_fork, "evaluate", model, "--data", "own", "-S", "data.allow_overlap=own", "--json")
    )
    assert (result["noise"], result["training_noise"], result["passes"]) == ("none", "real", 1)
    run(denoise_fork, "restore", "own/cup_noisy.png", "-o", "restored.png", "--model", model, "--noise", "gauss20")
    run(denoise_fork, "restore", "own/cup_noisy.png", "-o", "deviation.png", "--model", model, "--deviation")
    restored, deviation = (read_image(project / f"{name}.png").pixels for name in ("restored", "deviation"))
    assert restored.shape == deviation.shape == pixels.shape
    assert deviation.mean() < 0.5 * restored.mean()


def test_a_method_without_training_is_a_model(project, denoise_fork, small_images):
    few_steps = ["-S", "method=zs_n2n", "-S", "method.steps=3"]
    noisy = small_images / "1-rocket.jpg"
    run(denoise_fork, "restore", noisy, "-o", "restored.png", "--model", "zs_n2n", *few_steps)
    assert (project / "restored.png").is_file()


def test_no_name_of_a_file_steers_the_terminal(project, denoise_fork, small_images):
    few_steps = ["--model", "zs_n2n", "-S", "method=zs_n2n", "-S", "method.steps=1"]
    name = os.fsdecode(b"caf\xe9\x1b[2J\nerror: forged.png")
    shutil.copy(small_images / "1-rocket.jpg", project / name)
    shown = run(denoise_fork, "restore", name, "-o", "out", *few_steps)
    assert shown == r"out/caf\xe9\x1b[2J\nerror: forged.png" + "\n"
    document = json.loads(run(denoise_fork, "restore", name, "-o", "out", *few_steps, "--json"))
    assert document[0]["target"] == f"out/{name}"
    (project / name).write_bytes(b"no image")
    assert r"caf\xe9\x1b[2J\nerror: forged.png does not decode" in run(
        denoise_fork, "restore", name, "-o", "out", *few_steps, expect=1
    )


def test_recipes_are_listed_and_shown(project, denoise_fork):
    titles = json.loads(run(denoise_fork, "presets", "--json"))
    assert "laine2019-gauss25-ssdn-known" in titles
    recipe = json.loads(run(denoise_fork, "presets", "r2r-bsd68-sigma25", "--json"))
    assert recipe["config"]["train"]["steps"] == 93_125
    assert "29.14" in run(denoise_fork, "presets", "r2r-bsd68-sigma25")


def test_training_on_the_test_images_is_refused(project, denoise_fork):
    shutil.copytree(project / "data/shards/train", project / "data/shards/test")
    message = run(denoise_fork, "train", "--local", "data.test=small", expect=1)
    assert "5 images of the test set small are in the training set small" in message
    assert "data.allow_overlap=small" in message
    run(denoise_fork, "train", "--local", "data.test=small", "data.allow_overlap=small", "train.steps=1")


def test_scoring_on_the_training_images_is_refused(project, denoise_fork):
    model = json.loads(run(denoise_fork, "train", "--local", "--json", "train.steps=1"))["model"]
    shutil.copytree(project / "data/shards/train", project / "data/shards/test")
    assert "was trained on the test set small" in run(denoise_fork, "evaluate", model, "--data", "small", expect=1)


def test_a_local_run_resumes_and_a_finished_one_is_returned(project, denoise_fork):
    run(denoise_fork, "train", "--local", "--name", "mine", "train.steps=6", "train.checkpoint_every=6")
    first = json.loads(run(denoise_fork, "train", "--local", "--name", "mine", "--json"))
    history = (project / "runs/mine/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == [2, 4, 6, 8, 10, 12]
    assert json.loads(run(denoise_fork, "train", "--local", "--name", "mine", "--json")) == first


def test_torchrun_trains_with_the_same_command(project, denoise):
    torchrun = [denoise[0], "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *denoise[1:]]
    answer = json.loads(run(torchrun, "train", "--json", "train.steps=4"))  # one answer for both ranks
    assert (project / answer["model"] / "net.safetensors").is_file()
    rows = (project / answer["model"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4]


@pytest.mark.parametrize(
    "arguments",
    [
        ["shard", "own", "--from", "own", "-S", "data.root=/sys/data"],
        ["fetch", "samples", "-S", "data.root=/sys/data"],
        ["data", "show", "small", "--split", "val", "--out", "/sys/sheet.png"],
        ["train", "--local", "--out", "/sys/model"],
        ["train", "ray.storage=/sys/runs"],
        ["train", "tracking.uri=sqlite:////sys/mlflow.db"],
        [
            "tune",
            "tpe-asha",
            "data.train=small",
            "data.val=small",
            "data.test=",
            "tune.storage=sqlite:////sys/optuna.db",
        ],
        [
            "tune",
            "tpe-asha",
            "data.train=small",
            "data.val=small",
            "data.test=",
            "tune.storage=journal:/sys/sweeps.log",
        ],
        ["models", "list", "-S", "tracking.uri=sqlite:////sys/mlflow.db"],
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence(project, arguments, monkeypatch, capfd, small_images):
    """Nobody creates files in /sys, not even root."""
    (project / "own").symlink_to(small_images)
    monkeypatch.setattr(sys, "argv", ["denoise", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "/sys/" in sentence(capfd.readouterr().err)


def test_ctrl_c_while_the_command_is_imported_ends_it_without_a_traceback(monkeypatch, capfd):
    from pipelines.cli.__main__ import main

    class Interrupted:
        def find_spec(self, name, *_):
            if name == "pipelines.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "pipelines.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capfd.readouterr() == ("", "")
