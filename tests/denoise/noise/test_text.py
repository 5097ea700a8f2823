import numpy as np
import pytest
import torch

from denoise.errors import UserError
from denoise.noise import glyphs, parse_noise
from denoise.noise.text import _visible
from denoise.rng import batch_rng

OUTSIDE = -5.0  # no blend of it with a colour gives it back: a pixel that has it was not touched


def written(name, samples=2, channels=3, height=96, width=128):
    clean = torch.full((samples, channels, height, width), OUTSIDE)
    observed = parse_noise(name).corrupt(clean, batch_rng(0, 0, torch.arange(samples)))
    return observed, (observed.noisy != OUTSIDE).any(1, keepdim=True)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (64, 64), (96, 128), (300, 200)])
@pytest.mark.parametrize("name", ["text0", "text0.05", "text0.25", "text0.5", "text0.9", "text0_0.5"])
def test_text_touches_the_stated_share_of_the_image(name, height, width):
    observed, touched = written(name, height=height, width=width)
    assert (touched.float().mean((2, 3), keepdim=True) - observed.level).abs().max() < 0.02


def test_no_part_of_the_image_is_spared():
    _, touched = written("text0.25", samples=400, channels=1, height=64, width=64)
    share = touched.float().mean((0, 1))
    blocks = share.unfold(0, 16, 16).unfold(1, 16, 16).mean((-2, -1))
    assert blocks.min() > 0.25 * 0.7
    assert blocks.max() < 0.25 * 1.3


def test_edges_are_smooth_and_letters_are_solid_and_in_range():
    clean = torch.zeros(1, 1, 200, 200)
    noise = parse_noise("text0.5")
    on_black = noise.corrupt(clean, batch_rng(0, 0, torch.arange(1))).noisy
    on_white = noise.corrupt(clean + 1, batch_rng(0, 0, torch.arange(1))).noisy
    alpha = 1 - (on_white - on_black)
    assert on_black.min() >= 0
    assert max(on_black.max(), on_white.max(), alpha.max()) <= 1 + 1e-6
    touched = alpha[alpha > 1e-6]
    assert (touched > 0.99).float().mean() > 0.3
    assert ((touched > 0.1) & (touched < 0.9)).float().mean() > 0.1


def test_colours_differ_and_are_spread():
    observed, _ = written("text0.5", height=300, width=300)
    clean = torch.zeros(2, 3, 300, 300)
    noisy = parse_noise("text0.5").corrupt(clean, batch_rng(0, 0, torch.arange(2))).noisy
    solid = noisy[(noisy > 0).all(1, keepdim=True).expand_as(noisy)].view(3, -1)
    assert torch.equal((observed.noisy != OUTSIDE).any(1), (noisy > 0).any(1))
    assert solid.min() < 0.1
    assert solid.max() > 0.9


def test_two_images_of_one_batch_have_different_text():
    _, touched = written("text0.5")
    assert 0.3 < (touched[0] != touched[1]).float().mean() < 0.7  # independent: 0.5


def test_an_image_smaller_than_a_letter_ends():
    observed, touched = written("text0.5", height=2, width=3)
    assert observed.noisy.shape == (2, 3, 2, 3)
    assert touched.float().mean() <= 1


@pytest.mark.parametrize(("x", "y"), [(4, 5), (-9, 3), (6, -11), (20, 8), (3, 22), (-12, -12), (-60, 4), (4, 90)])
def test_a_letter_across_an_edge_shows_the_part_inside(x, y):
    glyph = glyphs.atlas()[4][glyphs.LETTERS.index("W")]
    wide = np.zeros((1, 300, 300), dtype=np.float32)
    all_of_it, alpha = _visible(wide, glyph, x + 100, y + 100)
    all_of_it[:] = alpha
    cut = np.zeros((1, 30, 40), dtype=np.float32)
    part, alpha = _visible(cut, glyph, x, y)
    part[:] = alpha
    assert wide.sum() == pytest.approx(glyph.alpha.sum())
    assert np.array_equal(cut, wide[:, 100:130, 100:140])


def test_every_letter_is_rendered_at_every_size():
    for size, letters in zip(glyphs.SIZES, glyphs.atlas(), strict=True):
        assert len(letters) == len(glyphs.LETTERS)
        for glyph in letters:
            assert 0.3 < glyph.alpha.max() <= 1
            assert glyph.alpha.shape[0] <= 1.3 * size
            assert glyph.top >= 0


def test_a_missing_font_is_reported(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").touch()
    monkeypatch.delitem(__import__("sys").modules, "matplotlib", raising=False)
    with pytest.raises(UserError, match=r"DejaVuSans\.ttf.*pip install matplotlib"):
        glyphs._font_file()
