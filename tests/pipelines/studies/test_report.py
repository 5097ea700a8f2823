"""The report of a study: its page and its Markdown, from invented results."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denoise.files import fitting_name
from pipelines.report.curves import Curve, draw_chart
from pipelines.studies.report import write_study_report
from pipelines.studies.report.differences import difference
from pipelines.studies.report.histograms import BINS, count
from pipelines.studies.report.levels import rank_correlation
from pipelines.studies.report.scores import _published
from pipelines.studies.results import (
    Cell,
    StudyRun,
    Training,
    cell_file,
    read_cell,
    read_run,
    write_cell,
    write_run,
)
from pipelines.studies.results_page import section_text
from tests.pipelines.report.test_write import Page, browser  # noqa: F401  # a fixture

REFERENCE, OTHER, HOSTILE, FAILED, LATER = "N2C", "N2N", "<script>alert(1)</script>|`*", "SSDN", "N2V"
ROWS = (REFERENCE, OTHER, HOSTILE, FAILED, LATER)
SEEDS = (0, 1, 2)
SETS = {"kodak": 12, "bsds300/val": 16}  # images of each
CONFIG = {"data": {"test": list(SETS)}}
DEFINITION = {
    "title": "A table <i>of</i> an invented report",
    "source": "An invented report, table 1",
    "sources": {"report": "the report's own", "paper": "the paper that it reproduces"},
    "note": "Their second noisy image was the first one.",
    "rows": [
        {
            "name": REFERENCE,
            "published": {"report": {"kodak": 32.0, "average": 31.5}, "paper": {"kodak": [32.4, 0.884]}},
        },
        {"name": OTHER, "published": {"report": {"kodak": 30.0, "epoch 2": 27.5}, "paper": {"set14": 31.0}}},
        {"name": FAILED, "note": "half the channels"},
    ],
    "budgets": {"short": {"config": {"train": {"steps": 600}}, "seeds": [0, 1, 2], "note": "as long as a coffee"}},
    "hold": {
        "always": [f'psnr("{OTHER}") > noisy("{OTHER}") + 3'],
        "short": [f'psnr("{REFERENCE}") < psnr("{OTHER}") - 1', f'psnr("{OTHER}") > psnr("{FAILED}")'],
    },
}


def scores(psnr: float, data: str, names: list[str]) -> dict[str, object]:
    """Scores around a PSNR, that of the images from 3 below to 3 above it."""
    images = []
    for index, name in enumerate(names):
        sigma = 0.1 + 0.01 * index
        figures = {"psnr": psnr + 6 * index / (len(names) - 1) - 3, "noisy_psnr": 20.25, "ssim": 0.8 + 0.005 * index}
        images.append({"name": name, **figures, "noisy_ssim": 0.4, "sigma": sigma, "estimated_sigma": sigma + 0.01})
    means = {"psnr": psnr, "noisy_psnr": 20.25, "ssim": 0.8213, "noisy_ssim": 0.4, "ssim_uniform": 0.9512, "bias": 0.01}
    settings = {"noise": "gauss5_50", "data": data, "data_digest": "0123456789abcdef", "protocol": "float", "passes": 1}
    return {**means, **settings, "tile": 128, "overlap": 64, "precision": "fp32", "images": images, "seconds": 12.0}


def training(row: str, seed: int, level: float) -> Training:
    history = []
    for step in range(10, 601, 10):
        loss = 0.02 + math.exp(-step / 60) + 0.002 * math.sin(step + seed)
        logged = {
            "step": float(step),
            "seconds": step / 2,
            "loss": loss,
            "train_psnr": level - 8 * math.exp(-step / 90),
        }
        if step % 50 == 0:
            logged |= {"val_psnr": level - 200 / step, "val_ssim": 0.8 + step / 6000, "val_mse": 1 / step}
        history.append(logged)
    return Training(
        run=f"study-{ROWS.index(row)}-{seed}", steps=600, batch_size=4, images=2400, train_images=200, weights=1234567,
        seconds=300.0, images_per_second=8.0, peak_memory_mb=512.0, device="an invented device",
        data={"bsds300/train": "fedcba9876543210"}, code="c0dec0dec0de", history=tuple(history),
    )  # fmt: skip


def write_images(folder: Path, data: str, names: list[str], noise: float) -> None:
    """Noisy, restored and clean of the first, the middle and the last image."""
    (folder / data).mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :400]
    for number in (0, len(names) // 2, len(names) - 1):
        clean = 128 + 90 * np.sign(np.sin(x / 19 + number) * np.cos(y / 13))
        parts = {"clean": clean, "noisy": clean + rng.normal(0, 50, clean.shape)}
        parts["restored"] = clean + noise * (parts["noisy"] - clean)
        for kind, pixels in parts.items():
            file = folder / data / fitting_name(names[number].removesuffix(".png"), f"-{kind}.png")
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three seeds of three rows, one row that failed twice, and one that has not been run."""
    folder = tmp_path_factory.mktemp("studies") / "short"
    run = StudyRun(
        "invented", "short", DEFINITION, ROWS, SEEDS, stand_in="a sample for ImageNet", commit="abc1234",
        date="2026-01-02", command="denoise study run invented --budget short",
    )  # fmt: skip
    write_run(folder, run)
    names = {data: [f"{data[:5]}-{index:02}.png" for index in range(images)] for data, images in SETS.items()}
    for number, (row, level, steps) in enumerate(
        [(REFERENCE, 32.0, (0, 0, 0)), (OTHER, 31.0, (0.1, 0.2, 0.3)), (HOSTILE, 32.0, (0.10, 0.12, 0.14))]
    ):
        for seed, step in zip(SEEDS, steps, strict=True):
            psnr = {data: level + step - (data != "kodak") for data in SETS}
            scored = {data: scores(psnr[data], data, names[data]) for data in SETS}
            cell = Cell(row, seed, CONFIG, training(row, seed, level + step), scored)
            write_cell(cell_file(folder, number, seed), cell)
        for data in SETS:
            write_images(folder / "images" / f"{number:02d}-seed0", data, names[data], 0.1 + 0.1 * number)
    for seed in SEEDS[:2]:
        failure = "train.lr=9 made the loss infinite at step 7 <img src=x>."
        write_cell(cell_file(folder, ROWS.index(FAILED), seed), Cell(FAILED, seed, {}, failure=failure))
    return write_study_report(folder)


@pytest.fixture
def study(report: Path, tmp_path: Path) -> Path:
    """The folder of a study with its report, to change."""
    return Path(shutil.copytree(report.parent, tmp_path / "short"))


def markdown_row(text: str, name: str) -> dict[str, str]:
    """The first table's row of a name, by the columns' headings."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    heading, row = lines[0], next(line for line in lines if line.startswith(f"| {name} "))
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (heading, row))
    return dict(zip(*cells, strict=True))


def test_dates_and_commits_of_results_that_were_made_one_after_the_other(study: Path) -> None:
    later = replace(read_cell(cell_file(study, 0, 0)), date="2026-01-04", commit="def5678")
    write_cell(cell_file(study, 0, 0), later)
    run = read_run(study)
    assert run.dates == "2026-01-02, 2026-01-04"  # those of the others are the study's
    assert run.commits == "def5678, abc1234"
    text = write_study_report(study).with_name("report.md").read_text()
    assert "Date: 2026-01-02, 2026-01-04" in text
    assert "Commit: def5678, abc1234" in text


def test_figures_of_the_first_table(report: Path) -> None:
    text = (report.parent / "report.md").read_text()
    assert markdown_row(text, REFERENCE) == {
        "row": REFERENCE,
        "kodak ours": "32.00 ± 0.00",
        "kodak report": "32.00 (+0.00)",
        "kodak paper": "32.40 / 0.884 (-0.40)",
        "bsds300/val ours": "31.00 ± 0.00",
        "set14 ours": "–",
        "set14 paper": "–",
        "average ours": "31.50 ± 0.00",
        "average report": "31.50",  # of kodak alone, so not of the same sets as ours
        "epoch 2 ours": "30.00 ± 0.00",
        "epoch 2 report": "–",
        "input PSNR": "20.25 ± 0.00",
        "SSIM": "0.8213 ± 0.0000",
        "SSIM, 7x7 window": "0.9512 ± 0.0000",
        "bias": "+2.55 ± 0.00",
        "seeds": "3 of 3",
    }
    other = markdown_row(text, OTHER)
    assert (other["kodak ours"], other["kodak report"]) == ("31.20 ± 0.10", "30.00 (+1.20)")
    assert (other["epoch 2 ours"], other["epoch 2 report"]) == ("29.20 ± 0.10", "27.50 (+1.70)")
    assert (markdown_row(text, FAILED)["kodak ours"], markdown_row(text, FAILED)["set14 ours"]) == ("failed", "–")
    assert markdown_row(text, FAILED)["seeds"] == "0 of 3, 2 failed"
    assert markdown_row(text, LATER)["kodak ours"] == "–"


def test_validations_of_stand_in_images_are_not_compared_with_published_ones() -> None:
    figures = {"ee559/val": 24.5, "epoch 1": 24.0}
    assert _published(figures, "epoch 1", [21.0], ["ee559/val"]) == "24.00 (-3.00)"
    assert _published(figures, "epoch 1", [21.0], ["kodak_256_test"]) == "24.00"


def test_page_and_markdown_say_the_same(report: Path) -> None:
    page, text = Page(report), (report.parent / "report.md").read_text()
    assert text.splitlines()[2] == "**Stand-in images were used: a sample for ImageNet**"
    for shown in (
        *("32.40 / 0.884 (-0.40)", "29.20 ± 0.10", "0 of 3, 2 failed"),  # the first table
        *("abc1234", "2026-01-02", "as long as a coffee", "train.steps=600", "an invented report", "half the channels"),
        *("1,234,567", "25.0", "128, overlap 64", "study-1-0, study-1-1, study-1-2"),
        *("bsds300/train fedcba98", "kodak/test 01234567, bsds300/val 01234567", "c0dec0de"),
        "Their second noisy image was the first one.",
        "denoise study run invented --budget short",
        "train.lr=9 made the loss infinite at step 7",
        "Of 15 results, failed: 2; not chosen, or not run yet: 4.",
        *("held", "failed", "not run"),
        *("-0.800", "+0.070 to +0.170", "higher", "lower", "3 seeds"),
        *("+2.55", "1.000"),  # the error of the estimated sigma in 255ths, and its rank correlation
    ):
        assert shown in page.text
        assert shown in text
    outcomes = [span["class"] for span in page.all("span") if span.get("class", "").startswith("outcome ")]
    assert outcomes == ["outcome outcome-held", "outcome outcome-failed", "outcome outcome-none"]
    assert f'psnr("{OTHER}") > psnr("{FAILED}")' in page.text


def of(psnr: float, data: str = "kodak", images: tuple[float, ...] = ()) -> Cell:
    entries = [{"name": f"{number}.png", "psnr": value} for number, value in enumerate(images)]
    return Cell("any", 0, {}, None, {data: {"psnr": psnr, "images": entries}})


def test_paired_differences_by_hand() -> None:
    # t(0.975, 2 degrees of freedom) = 4.30265; the deviation is 0.1, so the margin is 4.30265 x 0.1 / sqrt(3) = 0.2484
    wide = difference({0: of(30.1), 1: of(31.2), 2: of(29.3)}, {0: of(30), 1: of(31), 2: of(29)})
    assert (wide.mean, wide.over, wide.outcome) == (pytest.approx(0.2), "3 seeds", "not resolved")
    assert wide.interval == pytest.approx((0.2 - 0.24841, 0.2 + 0.24841), abs=1e-5)
    narrow = difference({0: of(29.9), 1: of(30.88), 2: of(28.86)}, {0: of(30), 1: of(31), 2: of(29)})
    assert narrow.interval == pytest.approx((-0.12 - 0.04968, -0.12 + 0.04968), abs=1e-5)
    assert narrow.outcome == "lower"
    # One seed: the three images differ by 1, 2 and 3, the margin is 4.30265 / sqrt(3) = 2.4841
    images = difference({0: of(0, images=(11, 22, 33))}, {0: of(0, images=(10, 20, 30)), 1: of(9)})
    assert images.interval == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert images.over == "3 images of one seed: leaves out the noise of training"
    other = Cell("any", 0, {}, None, {"kodak": {"psnr": 0.0, "noise": "poisson30", "images": []}})
    assert difference({0: other, 1: other}, {0: of(0), 1: of(0)}).over == "2 seeds; scored on another noise"
    assert difference({0: of(30)}, {1: of(30)}) is None  # no seed has both
    assert difference({0: of(30, "kodak", (1, 2))}, {0: of(30, "bsds300", (1, 2))}) is None  # nor any test set


def test_small_numbers() -> None:
    assert rank_correlation([(1, 1), (2, 3), (3, 2)]) == pytest.approx(0.5)  # 1 - 6 (0 + 1 + 1) / (3 (9 - 1))
    assert rank_correlation([(1, 5), (2, 5)]) is None
    assert count([0, 0.049, 0.5, 1], 0, 1) == [2, *[0] * 9, 1, *[0] * (BINS - 12), 1]
    low = Curve("a", 0, [], [(float(step), 30.0 + step / 10 - 100 * (step == 0)) for step in range(41)])
    chart = draw_chart([low], "PSNR", "dB", shown=(0.05, 1.0))
    assert min(float(text) for _, text in chart.y_ticks) >= 30
    assert chart.cut


def test_hostile_names_stay_text(study: Path) -> None:
    outside = study / "images" / "00-seed0"
    for kind in ("noisy", "restored", "clean"):
        Image.new("L", (8, 8)).save(outside / f"secret-{kind}.png")
    run = read_run(study)
    cell = run.cells[0]
    images = [{"name": name, "psnr": 99.0} for name in ("../secret.png", "..", '"><img src=x onerror=alert(2)>')]
    hostile = {**cell.scores["kodak"], "images": [*cell.scores["kodak"]["images"], *images]}
    inside = {**hostile, "images": [{"name": "secret.png", "psnr": 99.0}]}
    write_cell(cell_file(study, 0, 0), Cell(cell.row, 0, {}, cell.training, {"kodak": hostile, ".": inside}))
    file = write_study_report(study)
    page, text = Page(file), (study / "report.md").read_text()
    assert HOSTILE in page.text
    assert "<script>alert" not in file.read_text()
    assert "<i>of" not in file.read_text()
    assert not any("onerror" in attributes or attributes.get("src") == "x" for _, attributes in page.elements)
    assert r"\<script\>alert(1)\</script\>\|\`\*" in text
    assert r"A table \<i\>of\</i\> an invented report" in text
    assert "secret" not in "".join(image.get("alt", "") for image in page.all("img"))
    for _, attributes in page.elements:
        for key in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(key, "data:").startswith("data:")


def test_curves_histograms_and_images(report: Path) -> None:
    page = Page(report)
    panels = [div["id"] for div in page.all("div") if div.get("role") == "tabpanel" and "hidden" not in div]
    assert panels == ["over-steps"]  # what is seen without the script
    assert [div["id"] for div in page.all("div") if "hidden" in div and div["id"] != "axes"] == [
        *("over-epochs", "over-images", "over-hours")
    ]
    assert len([svg for svg in page.all("svg") if " by " in svg.get("aria-label", "")]) == 4 * 5
    assert len(page.all("polygon")) == 4 * 5 * 3  # a band for each of the three rows
    assert len([svg for svg in page.all("svg") if " of N2C: 28 images" in svg.get("aria-label", "")]) == 2
    captions = [image["alt"] for image in page.all("img")]
    assert captions[0] == "kodak, kodak-00.png, noisy, 20.25 dB"
    assert captions[1] == "kodak, kodak-00.png, N2C, 29.00 dB"
    assert captions[4] == "kodak, kodak-00.png, clean"
    assert "kodak, kodak-11.png: 35.00 dB (+14.75), best" in page.text
    assert "kodak, kodak-06.png: 32.27 dB (+12.02), 7 of 12 from below" in page.text
    sizes = [image.size for image in page.images()]
    assert sizes.count((96, 96)) == 4 * 5
    assert sizes.count((320, 96)) == 3 * 2 * 3


def test_noisy_images_of_several_noises_are_named(study: Path) -> None:
    for seed in SEEDS:
        file = cell_file(study, 1, seed)
        cell = read_cell(file)
        poisson = {data: {**score, "noise": "poisson30"} for data, score in cell.scores.items()}
        write_cell(file, replace(cell, scores=poisson))
    names = [path.name for path in (study / "images" / "01-seed0" / "kodak").glob("*-noisy.png")]
    for name in names:  # other noise, so another image
        pixels = np.asarray(Image.open(study / "images" / "01-seed0" / "kodak" / name)) // 2
        Image.fromarray(pixels).save(study / "images" / "01-seed0" / "kodak" / name)
    captions = [image["alt"] for image in Page(write_study_report(study)).all("img")]
    assert "kodak, kodak-00.png, noisy (gauss5_50), 20.25 dB" in captions
    assert "kodak, kodak-00.png, noisy (poisson30), 20.25 dB" in captions


def test_a_damaged_image_is_left_out(study: Path) -> None:
    whole = len(Page(study / "index.html").images())
    (study / "images" / "00-seed0" / "kodak" / "kodak-00-restored.png").write_bytes(b"no image")
    assert len(Page(write_study_report(study)).images()) == whole - 2
    shutil.rmtree(study / "images")
    assert Page(write_study_report(study)).images() == []


def test_same_results_give_the_same_bytes_and_none_give_a_page(study: Path) -> None:
    before = [(study / name).read_bytes() for name in ("index.html", "report.md")]
    write_study_report(study)
    assert [(study / name).read_bytes() for name in ("index.html", "report.md")] == before
    shutil.rmtree(study / "cells")
    page = Page(write_study_report(study))
    assert "Of 15 results, not chosen, or not run yet: 15." in page.text
    assert "0 of 3" in page.text
    assert page.all("polyline") == []


def test_axes_in_a_browser(report: Path, browser: object) -> None:  # noqa: F811
    shown = (
        "return [...document.querySelectorAll('.charts')].filter(panel => panel.offsetHeight).map(panel => panel.id)"
    )
    browser.get(report.as_uri())
    assert browser.execute_script(shown) == ["over-steps"]
    browser.find_element("xpath", "//button[text()='hours']").click()
    assert browser.execute_script(shown) == ["over-hours"]
    browser.switch_to.active_element.send_keys("\ue012")  # arrow left
    assert browser.execute_script(shown) == ["over-images"]
    browser.set_window_size(500, 900)  # the narrowest of Chromium
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.get_log("browser") == []


def test_the_section_of_a_results_page_leaves_out_rows_that_were_not_run(study: Path) -> None:
    text = section_text(read_run(study))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert not any(line.startswith(f"| {LATER} ") for line in tables)
    assert any(line.startswith(f"| {FAILED} ") for line in tables)  # it was tried
    assert f"Rows not run: {LATER}." in text
