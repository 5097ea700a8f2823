"""The report: a page that needs no other file, figures, the table, the metrics and the README's image."""

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from denoise.config import load_config, to_dict
from denoise.errors import UserError
from pipelines.report.inputs import read_trainings
from pipelines.report.write import demo_image, metric_rows, table, write_report

pytestmark = pytest.mark.smoke

CHROMIUM, CHROMEDRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
VOID = {"meta", "link", "img"}


def photograph(name: str, height: int = 96, width: int = 128) -> np.ndarray:
    return getattr(skimage.data, name)()[100 : 100 + height, 150 : 150 + width]


def eight_bits(image: np.ndarray) -> np.ndarray:
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def write_evaluation(
    folder: Path, method: str, images: dict[str, np.ndarray], data: str = "samples", keep: bool = True
) -> Path:
    """Score the mean with a 3x3 neighbourhood (one weight a method) as the denoiser of Gaussian noise."""
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(0)
    entries = []
    for name, clean in images.items():
        noisy = clean + noise.normal(0, 25, clean.shape)
        blurred = sum(np.roll(noisy, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)) / 9
        restored = blurred if method == "n2n" else 0.9 * blurred + 0.1 * noisy
        entry = {"name": f"{name}.png"}
        channel = -1 if clean.ndim == 3 else None
        for prefix, image in (("noisy_", eight_bits(noisy)), ("", eight_bits(restored))):
            entry[f"{prefix}psnr"] = float(peak_signal_noise_ratio(clean, image))
            entry[f"{prefix}ssim"] = float(structural_similarity(clean, image, channel_axis=channel))
        entries.append(entry)
        for kind, image in (("noisy", noisy), ("restored", restored), ("clean", clean)):
            if keep:
                Image.fromarray(eight_bits(image)).save(folder / "images" / f"{name}-{kind}.png")
    means = {key: float(np.mean([entry[key] for entry in entries])) for key in entries[0] if key != "name"}
    scores = {"method": method, "noise": "gauss25", "data": data, "protocol": "float", "seconds": 1.5, **means}
    (folder / "scores.json").write_text(json.dumps({**scores, "images": entries}))
    return folder


def write_training(folder: Path, method: str, steps: int = 400) -> Path:
    folder.mkdir(parents=True)
    config = to_dict(load_config(None, [f"method={method}", f"train.steps={steps}"]))
    (folder / "model.json").write_text(json.dumps({"format": 1, "channels": 3, "config": config}))
    lines = [{"step": step, "loss": 0.01 + math.exp(-step / 50), "lr": 1e-3} for step in range(10, steps + 1, 10)]
    for line in lines[9::10]:
        line["val_psnr"] = 28 - 8 * math.exp(-line["step"] / 100)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def images() -> dict[str, np.ndarray]:
    return {name: photograph(name) for name in ("astronaut", "chelsea", "camera")}  # the last one is grey


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [write_training(tmp_path / "models" / method, method) for method in ("n2c", "n2n")]


@pytest.fixture
def scores(tmp_path: Path, images: dict[str, np.ndarray]) -> list[Path]:
    return [write_evaluation(tmp_path / "scores" / method, method, images) for method in ("n2c", "n2n")]


class Page(HTMLParser):
    """The page's elements, its text, and a check that every element is closed where it should be."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text, self.open = "", []
        self.feed(page.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def images(self) -> list[Image.Image]:
        sources = [image["src"] for image in self.all("img") if "src" in image]
        return [
            Image.open(io.BytesIO(base64.b64decode(source.split("base64,")[1], validate=True))) for source in sources
        ]


def test_page_needs_no_other_file(models: list[Path], scores: list[Path], tmp_path: Path) -> None:
    file = write_report(models, scores, tmp_path / "report")
    assert file == tmp_path / "report" / "index.html"
    page = Page(file)
    assert "http" not in file.read_text().replace("http-equiv", "")
    assert "@import" not in file.read_text()
    assert "url(" not in file.read_text()
    for _, attributes in page.elements:
        for key in ("src", "href", "srcset", "data", "xlink:href", "action"):
            assert attributes.get(key, "data:").startswith("data:")


def test_images_are_embedded_once_each_in_their_own_size(
    models: list[Path], scores: list[Path], tmp_path: Path
) -> None:
    page = Page(write_report(models, scores, tmp_path / "report"))
    embedded = page.images()
    # noisy and clean are the same for both methods: 3 images x (noisy, clean, 2 restored)
    assert [(image.format, image.size) for image in embedded] == [("PNG", (128, 96))] * 12
    clean = np.asarray(
        embedded[[image.get("alt") for image in page.all("img") if "src" in image].index("camera, clean")]
    )
    assert np.array_equal(clean, photograph("camera"))
    assert all(image.get("alt") for image in page.all("img") if "src" in image)


def test_table_holds_the_figures(models: list[Path], scores: list[Path], tmp_path: Path) -> None:
    page = Page(write_report(models, scores, tmp_path / "report"))
    for folder in scores:
        document = json.loads((folder / "scores.json").read_text())
        for entry in (document, *document["images"]):
            gain = entry["psnr"] - entry["noisy_psnr"]
            for text in (f"{entry['psnr']:.2f}", f"{entry['noisy_psnr']:.2f}", f"{gain:+.2f}", f"{entry['ssim']:.4f}"):
                assert text in page.text
    assert "denoise train method=n2n noise=gauss25 data.train=samples train.steps=400" in page.text
    assert "denoise evaluate models/n2n --data samples --protocol float" in page.text
    assert all("scope" in header for header in page.all("th"))


def test_hostile_names_stay_text(models: list[Path], images: dict[str, np.ndarray], tmp_path: Path) -> None:
    name = "\"><img src=x onerror=alert(1)><!-- ' </script"
    hostile = {name.replace("/", ""): images["astronaut"], "../../secret": images["chelsea"]}
    folder = write_evaluation(tmp_path / "scores", "<b>n2n</b>", hostile, data="<i>", keep=False)
    for kind in ("noisy", "restored", "clean"):
        Image.fromarray(images["astronaut"]).save(folder / "images" / f"{next(iter(hostile))}-{kind}.png")
    file = write_report(models, [folder], tmp_path / "report", title="<script>alert(2)</script>")
    page = Page(file)
    assert next(iter(hostile)) in page.text
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert "<script>alert" not in file.read_text()
    assert "<b>n2n" not in file.read_text()
    assert len(page.images()) == 1  # all three files hold the same pixels; nothing outside the folder is shown
    assert {each.parent.name for each in (tmp_path / "report").rglob("*.png")} == {"figures"}


def test_same_input_gives_the_same_bytes(models: list[Path], scores: list[Path], tmp_path: Path) -> None:
    written = []
    for name in ("report", "report", "again"):
        folder = write_report(models, scores, tmp_path / name).parent
        written.append(
            {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        )
    assert written[0] == written[1] == written[2]
    names = {"index.html", "scores.csv", "figures/curves.png", "figures/comparison.png"}
    assert set(written[0]) == {*names, "figures/comparison-2-chelsea.png", "figures/comparison-3-camera.png"}
    head, *rows = written[0]["scores.csv"].decode().splitlines()  # what `dvc plots` draws
    assert head == "name,noisy_psnr,psnr,noisy_ssim,ssim"
    assert [row.partition(",")[0] for row in rows] == ["n2c", "n2n"]


def test_page_is_bounded(tmp_path: Path) -> None:
    many = {f"photo-{index:02}": photograph("coffee", 40, 50) for index in range(20)}
    many["photo-00"] = np.tile(photograph("coffee", 200, 300), (4, 3, 1))  # 800 x 900 pixels
    page = Page(write_report([], [write_evaluation(tmp_path / "scores", "n2n", many)], tmp_path / "report"))
    assert "6 of 20 test images" in page.text
    assert {image.get("alt", "").split(",")[0] for image in page.all("img") if "src" in image} == {
        f"photo-{index:02}" for index in (0, 3, 6, 10, 13, 16)
    }
    assert page.images()[0].size == (512, 512)
    assert len(list((tmp_path / "report" / "figures").iterdir())) == 6


def test_several_sets_some_without_images(models: list[Path], scores: list[Path], tmp_path: Path) -> None:
    kodak = write_evaluation(tmp_path / "kodak", "n2n", {"kodim01": photograph("coffee")}, "kodak", keep=False)
    page = Page(write_report(models, [*scores, kodak], tmp_path / "report"))
    assert "3 of 4 test images" in page.text
    assert "kodim01" in page.text
    assert set(metric_rows([*scores, kodak])) == {"n2c/samples", "n2n/samples", "n2n/kodak"}
    shutil.rmtree(kodak / "images")
    assert "<figure>" not in write_report([], [kodak / "scores.json"], tmp_path / "plain").read_text()


def test_metrics_and_table(scores: list[Path]) -> None:
    rows = metric_rows(scores)
    assert list(rows) == ["n2c", "n2n"]
    document = json.loads((scores[1] / "scores.json").read_text())
    labels = {key: document[key] for key in ("method", "noise", "data", "protocol")}
    figures = {key: round(document[key], 4) for key in ("noisy_psnr", "psnr", "noisy_ssim", "ssim")}
    assert rows["n2n"] == {**labels, **figures}
    heading, _, *lines = table(rows.values()).splitlines()
    assert re.split(r" {2,}", heading) == [
        "method", "noise", "data", "protocol", "PSNR noisy", "PSNR", "SSIM noisy", "SSIM",
    ]  # fmt: skip
    assert lines[1].split()[:4] == ["n2n", "gauss25", "samples", "float"]
    assert lines[1].split()[5] == f"{document['psnr']:.2f}"
    assert len({len(line) for line in (heading, *lines)}) == 1


@pytest.mark.parametrize(("name", "size"), [("astronaut", (512, 512)), ("chelsea", (300, 451)), ("camera", (30, 7))])
def test_demo_image(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "scores", "n2n", {name: getattr(skimage.data, name)()[: size[0], : size[1]]})
    demo_image(tmp_path / "docs" / "demo.png", folder, name)
    with Image.open(tmp_path / "docs" / "demo.png") as image:
        assert image.format == "PNG"
        assert image.width == 1200 or min(size) < 392
    assert [file.name for file in (tmp_path / "docs").iterdir()] == ["demo.png"]
    demo_image(tmp_path / "docs" / "demo.png", folder, f"{name}.png")
    with pytest.raises(UserError, match=rf"no image {name}x \(did you mean {name}\?\)"):
        demo_image(tmp_path / "docs" / "other.png", folder, f"{name}x")


def test_log_after_a_resume(models: list[Path]) -> None:
    with (models[0] / "metrics.jsonl").open("a") as log:
        log.write('{"step": 400, "loss": 0.5}\n{"step": 410, "loss": NaN}\n{"step": 420, "lo')
    assert read_trainings(models)[0].series("loss")[-1] == (400, 0.5)


def broken_json(models: list[Path], scores: list[Path]) -> None:
    (scores[0] / "scores.json").write_text("{")


def no_label(models: list[Path], scores: list[Path]) -> None:
    (scores[0] / "scores.json").write_text(json.dumps({"method": "n2c"}))


def not_a_number(models: list[Path], scores: list[Path]) -> None:
    document = json.loads((scores[0] / "scores.json").read_text())
    (scores[0] / "scores.json").write_text(json.dumps({**document, "psnr": math.nan}))


def twice(models: list[Path], scores: list[Path]) -> None:
    scores[1] = scores[0]


def no_scores(models: list[Path], scores: list[Path]) -> None:
    scores.clear()


def no_folder(models: list[Path], scores: list[Path]) -> None:
    scores[0] = scores[0].with_name("n2d")


def no_log(models: list[Path], scores: list[Path]) -> None:
    (models[0] / "metrics.jsonl").unlink()


def no_model(models: list[Path], scores: list[Path]) -> None:
    (models[0] / "model.json").unlink()


def broken_log(models: list[Path], scores: list[Path]) -> None:
    (models[0] / "metrics.jsonl").write_text('{"step": 1}\nloss\n{"step": 2}\n')


def broken_image(models: list[Path], scores: list[Path]) -> None:
    (scores[0] / "images" / "chelsea-clean.png").write_bytes(b"no image")


def other_size(models: list[Path], scores: list[Path]) -> None:
    Image.new("RGB", (5, 5)).save(scores[0] / "images" / "chelsea-restored.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_json, "should hold scores as JSON"),
        (no_label, "names no noise"),
        (not_a_number, "psnr of mean is nan"),
        (twice, "both score n2c"),
        (no_scores, "No scores were given"),
        (no_folder, r"n2d.*does not exist \(did you mean n2"),
        (no_log, "holds no metrics.jsonl"),
        (no_model, "model.json does not exist"),
        (broken_log, "Line 2 of .*metrics.jsonl is not JSON"),
        (broken_image, "chelsea-clean.png does not decode"),
        (other_size, "chelsea-restored.png is not as large"),
    ],
)
def test_bad_input_is_an_error_and_nothing_is_written(
    damage: object, message: str, models: list[Path], scores: list[Path], tmp_path: Path
) -> None:
    damage(models, scores)
    with pytest.raises(UserError, match=message):
        write_report(models, scores, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_folder_of_something_else_is_not_replaced(models: list[Path], scores: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part of a report"):
        write_report(models, scores, tmp_path)
    assert scores[0].is_dir()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[object]:
    if not (CHROMIUM.exists() and CHROMEDRIVER.exists()):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update",
        "disable-sync", "no-first-run", "window-size=1300,1000", f"user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    yield driver
    driver.quit()


def test_zoom_in_a_browser(models: list[Path], scores: list[Path], tmp_path: Path, browser: object) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    def transform() -> str:
        transforms = browser.execute_script(
            "return [...document.querySelectorAll('.pane img')].map(i => i.style.transform)"
        )
        assert len(transforms) == 3
        assert len(set(transforms)) == 1  # all three always show the same place
        return transforms[0]

    browser.get(write_report(models, scores, tmp_path / "report").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    pane = browser.find_element(By.CSS_SELECTOR, ".pane[data-kind=restored]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", pane)
    assert transform() == "translate(0px, 0px) scale(1)"
    ActionChains(browser).scroll_from_origin(ScrollOrigin.from_element(pane, 40, 20), 0, -300).perform()
    zoomed = transform()
    assert float(re.search(r"scale\((.*)\)", zoomed)[1]) > 1.5
    ActionChains(browser).drag_and_drop_by_offset(pane, 30, 15).perform()
    assert transform() not in (zoomed, "translate(0px, 0px) scale(1)")
    ActionChains(browser).click(pane).perform()  # a click while zoomed fits the image again
    assert transform() == "translate(0px, 0px) scale(1)"
    browser.find_element(By.ID, "panes").send_keys("+", Keys.ARROW_LEFT)
    assert "scale(2)" in transform()
    rendering = "return getComputedStyle(document.querySelector('.pane img')).imageRendering"
    assert browser.execute_script(rendering) == "pixelated"
    Select(browser.find_element(By.ID, "image")).select_by_visible_text("camera")
    Select(browser.find_element(By.ID, "method")).select_by_visible_text("n2n")
    assert browser.find_element(By.ID, "pane-restored").get_attribute("alt") == "camera, restored by n2n"
    assert browser.find_element(By.ID, "pane-restored").get_property("naturalWidth") == 128
    assert transform() == "translate(0px, 0px) scale(1)"
    assert browser.get_log("browser") == []
