"""What is laid over an image: its parts, one of them, and its attribution."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from scipy import ndimage

from rg.explain.colors import BLACK, HEAT, PAPER, palette
from rg.explain.facts import Facts, Size, scaled
from rg.explain.lettering import badge


def photo(explanation: Facts, size: Size | None = None) -> Image.Image:
    """The image (at ``size``, width and height in pixels), dark where the model did not see it."""
    height, width = explanation.image.shape[:2]
    size = size or (width, height)
    image = Image.fromarray(explanation.image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    x0, y0, x1, y1 = (round(value) for value in scaled(explanation.window, size[0] / width, size[1] / height))
    out = image.point(lambda level: level * 0.3)
    out.paste(image.crop((x0, y0, x1, y1)), (x0, y0))
    return out


def parts_overlay(explanation: Facts, background: bool = False, size: Size | None = None) -> Image.Image:
    """The image with its parts tinted, outlined and numbered.

    Args:
        explanation: Of one image.
        background: Tint background parts, and those that are off, too.
        size: Width and height of the picture in pixels; that of the image if None.
    """
    base = photo(explanation, size)
    winners = _winners(explanation, base.size)
    pixels = np.array(base, dtype=np.float32)
    visible = [part for part in explanation.parts if background or not (part.background or part.off)]
    colors = palette(len(explanation.parts))
    tinted = np.zeros(len(colors) + 1, dtype=bool)  # the last is that of pixels without a part, -1
    tinted[[part.index for part in visible]] = True
    tint = np.array([*colors, BLACK], dtype=np.float32)[winners]
    share = np.where(_borders(winners, _line_width(base.size)), np.float32(1.0), np.float32(0.34)) * tinted[winners]
    out = Image.fromarray((pixels + share[..., None] * (tint - pixels)).round().astype(np.uint8))
    draw = ImageDraw.Draw(out)
    height, width = explanation.image.shape[:2]
    x_scale, y_scale = base.width / width, base.height / height
    radius = max(7.0, min(base.size) / 21)
    for part in visible:
        mask = winners == part.index
        if mask.sum() > radius**2:
            anchor = _anchor(mask, (part.center[0] * x_scale, part.center[1] * y_scale))
            badge(draw, anchor, radius, str(part.index), colors[part.index])
    return out


def spotlight(explanation: Facts, part: int, size: Size | None = None) -> Image.Image:
    """The image with one part as it is, outlined in its colour, and the rest grey and dark.

    Args:
        explanation: Of one image.
        part: Index of the part.
        size: Width and height of the picture in pixels; that of the image if None.
    """
    base = photo(explanation, size)
    mask = _winners(explanation, base.size) == part
    pixels = np.array(base)
    grey = np.asarray(base.convert("L"), dtype=np.float32)[..., None] * 0.38 + 10
    out = np.where(mask[..., None], pixels, grey.astype(np.uint8))
    out[_borders(mask, _line_width(base.size)) & ~mask] = palette(len(explanation.parts))[part]
    return Image.fromarray(out)


def attribution_overlay(explanation: Facts, size: Size | None = None) -> Image.Image:
    """The grey image under a heat map of the attribution.

    Black up to an even share among the K parts (1/K), pale yellow for the largest value in the image, or for twice an
    even share if that is more: attention that prefers nothing is dark everywhere.

    Args:
        explanation: Of one image.
        size: Width and height of the picture in pixels; that of the image if None.
    """
    base = photo(explanation, size)
    heard = sum(part.attention > 0 for part in explanation.parts)  # not a background slot, nor what is off or merged
    even_shares = np.asarray(_resize(explanation.attribution, base.size)) * heard
    heat = np.clip((even_shares - 1) / (max(float(even_shares.max()), 2.0) - 1), 0, 1)
    return heat_map(base, heat)


def zoom_overlay(explanation: Facts, size: Size | None = None) -> Image.Image:
    """The image under lines that the backbone saw evenly spaced: where they are close, it saw more pixels.

    Args:
        explanation: Of one image, by a model behind a sampler.
        size: Width and height of the picture in pixels; that of the image if None.
    """
    assert explanation.zoom is not None
    base = photo(explanation, size)
    lined = base.copy()
    draw = ImageDraw.Draw(lined)
    height, width = explanation.image.shape[:2]
    x0, y0, x1, y1 = scaled(explanation.window, base.width / width, base.height / height)
    places = explanation.zoom * (x1 - x0 - 1, y1 - y0 - 1) + (x0, y0)
    for line in (*places, *places.swapaxes(0, 1)):
        draw.line([tuple(place) for place in line.tolist()], PAPER)
    return Image.blend(base, lined, 0.6)


def heat_map(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The grey image under the colours of heat.

    Args:
        image: RGB.
        heat: Of its pixels, [H, W] in 0 (black) to 1 (pale yellow).
    """
    stops, channels = np.linspace(0, 1, len(HEAT)), np.array([ImageColor.getrgb(stop) for stop in HEAT]).T
    colors = np.stack([np.interp(heat, stops, channel) for channel in channels], axis=-1)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    share = 0.35 + 0.3 * heat[..., None]
    return Image.fromarray(np.round(share * colors + (1 - share) * grey).astype(np.uint8))


def _winners(explanation: Facts, size: Size) -> np.ndarray:
    """Index of the part at every pixel of a picture of that size [h, w], -1 where there is none."""
    strongest = explanation.parts[0].strongest
    parts = np.flatnonzero(np.bincount(strongest[strongest >= 0], minlength=1))
    # Shares of a pixel in 8 bits: enough to tell which is largest.
    masks = np.stack([np.asarray(_resize((strongest == index).astype(np.uint8) * 255, size)) for index in parts])
    return np.where(masks.sum(0, dtype=np.int32) >= 128, parts[masks.argmax(0)], -1)


def _resize(values: np.ndarray, size: Size) -> Image.Image:
    """Numbers [H, W], float32 or uint8, as a picture of them; far larger ones are thinned out first."""
    step = max(1, min(values.shape[0] // (4 * size[1]), values.shape[1] // (4 * size[0])))
    return Image.fromarray(values[::step, ::step]).resize(size, Image.Resampling.BILINEAR)


def _line_width(size: Size) -> int:
    return max(1, round(min(size) / 110))


def _borders(winners: np.ndarray, width: int) -> np.ndarray:
    """Pixels with another part, or none, at most ``width`` columns and rows away."""
    around = 2 * width + 1
    lowest, highest = ndimage.minimum_filter(winners, around), ndimage.maximum_filter(winners, around)
    return np.asarray(lowest != highest)


def _anchor(mask: np.ndarray, center: tuple[float, float]) -> tuple[float, float]:
    """Where to number a part: its centre, or where its mask is thickest if that lies outside the mask."""
    x, y = (min(max(int(value), 0), length - 1) for value, length in zip(center, mask.shape[::-1], strict=True))
    if mask[y, x]:
        return center
    step = max(1, max(mask.shape) // 100)
    if not mask[::step, ::step].any():
        step = 1
    # What lies outside of the picture is outside of the mask, so that the number keeps away from the edge.
    thickness = ndimage.distance_transform_edt(np.pad(mask[::step, ::step], 1))[1:-1, 1:-1]
    y, x = (step * int(index) for index in np.unravel_index(thickness.argmax(), thickness.shape))
    return float(x), float(y)
