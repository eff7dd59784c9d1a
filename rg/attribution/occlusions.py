"""What the logit of a class loses when some pixels turn grey: asked once, for all maps that should have foretold it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Occlusions:
    """Images under masks, the same for each.

    Args:
        logit: Images float [N, 3, H, W] in 0..255 and classes int64 [N] -> the logits of those [N].
        images: uint8 [N, 3, H, W].
        classes: int64 [N].
        grey: The colour of hidden pixels, [3] in 0..255.
        masks: bool [M, H, W], True for hidden pixels.

    Attributes:
        falls: Logit of the image minus that of the image under every mask, float64 [N, M].
    """

    def __init__(
        self,
        logit: Callable[[Tensor, Tensor], Tensor],
        images: Tensor,
        classes: Tensor,
        grey: Tensor,
        masks: np.ndarray,
    ) -> None:
        self._masks = torch.from_numpy(masks).to(images.device)
        whole = images.float()
        colour = grey.to(whole).view(3, 1, 1)
        hidden = [logit(torch.where(mask, colour, whole), classes).double() for mask in self._masks]
        before = logit(whole, classes).double()
        self.falls = (before[:, None] - torch.stack(hidden, 1)).cpu().numpy()

    def sums(self, maps: Tensor) -> np.ndarray:
        """Sum of maps [N, h, w], bilinearly up-sampled, over the pixels of every mask: float64 [N, M]."""
        up = F.interpolate(maps[:, None].float(), self._masks.shape[1:], mode="bilinear", align_corners=False)
        return (up[:, 0].double().flatten(1) @ self._masks.double().flatten(1).T).cpu().numpy()
