"""Changes of colour against Pillow, and what they depend on."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from rg.model.color_jitter import color_jitter
from rg.model.noise import Stream, uniform

SEEDS = torch.tensor([4, 8, 15, 16, 23, 42])


@pytest.fixture
def images():
    small = torch.randint(30, 220, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(small, (16, 16), mode="bilinear").round()


def test_against_pillow(images):
    """Pillow rounds to whole grey levels after each of four steps, and turns hues by whole 256ths of a circle."""
    changed = color_jitter(images, SEEDS)
    for n, numbers in enumerate((2 * uniform(SEEDS, 4, Stream.COLOR_JITTER) - 1).tolist()):
        brightness, contrast, saturation, hue = (x * y for x, y in zip((0.3, 0.3, 0.2, 0.2), numbers, strict=True))
        picture = Image.fromarray(images[n].permute(1, 2, 0).numpy().astype(np.uint8))
        picture = ImageEnhance.Brightness(picture).enhance(1 + brightness)
        picture = ImageEnhance.Contrast(picture).enhance(1 + contrast)
        picture = ImageEnhance.Color(picture).enhance(1 + saturation)
        h, s, v = picture.convert("HSV").split()
        turn = round(hue * 256)
        h = Image.fromarray(((np.asarray(h).astype(int) + turn) % 256).astype(np.uint8))
        expected = np.asarray(Image.merge("HSV", (h, s, v)).convert("RGB"), dtype=float)
        difference = np.abs(changed[n].permute(1, 2, 0).numpy() - expected)
        assert difference.mean() < 3
        assert np.abs(images[n].permute(1, 2, 0).numpy() - expected).mean() > 3 * difference.mean()


def test_it_depends_on_the_image_alone(images):
    alone = torch.cat([color_jitter(images[n : n + 1], SEEDS[n : n + 1]) for n in range(6)])
    torch.testing.assert_close(color_jitter(images, SEEDS), alone, rtol=0, atol=0)
    assert not torch.equal(color_jitter(images, SEEDS), color_jitter(images, SEEDS + 1))
