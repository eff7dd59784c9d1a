"""ROAD, remove and debias (Rong et al., ICML 2022): the probability of a class when pixels are imputed from the others.

Most relevant first (MoRF), a faithful map makes it fall; least relevant first (LeRF), a faithful map lets it stay. That
both orders rank methods alike is what the imputation is for: a map that only removes larger patches gains in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rg.attribution.imputation import NOISE, impute

SHARES = (0.1, 0.3, 0.5)  # of the pixels; each costs two systems of equations for every image and map


def road(
    probability: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    classes: Tensor,
    ranks: Tensor,
    seed: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability over ``SHARES`` of the pixels imputed.

    Args:
        probability: Images float [N, 3, H, W] in 0..255 and classes int64 [N] -> the probability of those [N].
        images: uint8 [N, 3, H, W].
        classes: int64 [N].
        ranks: Place of every pixel in the order of a map, int64 [N, H, W]: 0 for the most relevant.
        seed: Of the noise, which is the same for all maps.

    Returns:
        Most relevant first and least relevant first, float64 [N] each.
    """
    pixels = images.permute(0, 2, 3, 1).double().cpu().numpy()
    noise = NOISE * np.random.default_rng(seed).standard_normal(pixels.shape)
    places = ranks.cpu().numpy()
    last = places[0].size - 1

    def mean(order: np.ndarray) -> np.ndarray:
        answers = []
        for share in SHARES:
            missing = order < round(share * order[0].size)
            imputed = np.stack(list(map(impute, pixels, missing, noise))).astype(np.float32)
            seen = torch.from_numpy(imputed).permute(0, 3, 1, 2).to(images.device)
            answers.append(probability(seen, classes).double().cpu().numpy())
        return np.mean(answers, axis=0)

    return mean(places), mean(last - places)
