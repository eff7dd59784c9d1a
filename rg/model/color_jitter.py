"""Random changes of colour, drawn for each image alone (see ``rg.model.noise``)."""

from __future__ import annotations

import torch
from torch import Tensor

from rg.model.noise import Stream, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.3, 0.3, 0.2, 0.2


def color_jitter(images: Tensor, seeds: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order, by as much as SCOPS (CVPR 2019) does at most.

    Args:
        images: Float [N, 3, H, W] in 0..255.
        seeds: Of the images, int64 [N].

    Returns:
        [N, 3, H, W] in 0..255.
    """
    from torchvision.transforms import functional

    spreads = torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, HUE])
    changes = (spreads * (2 * uniform(seeds, 4, Stream.COLOR_JITTER).cpu() - 1)).tolist()
    out = []
    for image, (brightness, contrast, saturation, hue) in zip(images / 255, changes, strict=True):
        image = functional.adjust_brightness(image, 1 + brightness)
        image = functional.adjust_contrast(image, 1 + contrast)
        image = functional.adjust_saturation(image, 1 + saturation)
        out.append(functional.adjust_hue(image, hue))
    return 255 * torch.stack(out)
