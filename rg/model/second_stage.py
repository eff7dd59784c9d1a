"""A second look at an image, at its parts alone: what is not shown cannot count, whatever the receptive field.

The first look groups the map of the whole image. Every pixel then goes to its strongest part, and those of the
background are removed. The classifier hears of nothing but a second look at what is left. Two stages with a hard mask
between them are those of iFAM (Aniraj et al., 2025); here both are one network, with batch statistics of its own for
either look.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from rg.config import SecondStageConfig
from rg.model.backbones import Backbone
from rg.model.layers import PartDictionary
from rg.model.maps import part_map
from rg.model.precision import without_autocast


class SecondStage(nn.Module):
    """What the second look has beside the network that both share.

    Args:
        config: See there.
        backbone: The network.
        standardization: Of the features of the first look.

    Attributes:
        statistics: Running statistics of the batch norms of the network in the second look.
        standardization: Of the features of the second look.
    """

    def __init__(self, config: SecondStageConfig, backbone: Backbone, standardization: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.standardization = copy.deepcopy(standardization)
        self.statistics = nn.Module()
        self._names = {name: name.replace(".", "_") for name in _statistics(backbone)}
        for name, value in _statistics(backbone).items():
            self.statistics.register_buffer(self._names[name], value.clone())

    def start_from(self, backbone: Backbone) -> None:
        """Take the running statistics of the network for those of the second look."""
        for name, value in _statistics(backbone).items():
            getattr(self.statistics, self._names[name]).copy_(value)

    def glimpse(self, images: Tensor) -> Tensor:
        """What the first look sees of images [N, 3, H, W]."""
        shrink = self.config.shrink
        wide = images if images.is_floating_point() else images.float()
        return F.avg_pool2d(wide, shrink) if shrink > 1 else images

    def masks(self, assign: Tensor, size: tuple[int, int]) -> Tensor:
        """Every pixel goes to its strongest part: a straight-through estimate in training.

        Forwards a mask is 0 or 1. Backwards it is the assignment, bilinearly up-sampled.

        Args:
            assign: [N, K, h, w].
            size: Height and width of the image.

        Returns:
            [N, K, *size], of which one of K is 1 and all others are 0, exactly.
        """
        return _hard(assign, size, self.training)

    def show(self, images: Tensor, masks: Tensor, grey: Tensor) -> Tensor:
        """What the second look sees of images: grey outside of the masks, which learn nothing by it.

        By the pixels that they show masks would get gradients more than ten times all others at the start, and parts
        vanish within thirty steps.

        Args:
            images: [N, 3, H, W], uint8 or float in 0..255.
            masks: Of the parts without the background [N, K, H, W].
            grey: The mean pixel [1, 3, 1, 1].

        Returns:
            [N, 3, H, W], or [N K, 3, H, W] with one part each.
        """
        colour = images.to(grey.dtype) - grey
        masks = masks.detach()
        if self.config.masks == "each":
            return (grey + masks.unsqueeze(2) * colour.unsqueeze(1)).flatten(0, 1)
        return grey + masks.sum(1, keepdim=True) * colour

    def forward(self, backbone: Backbone, dictionary: PartDictionary, images: Tensor, masks: Tensor) -> Tensor:
        """Regions of the second look.

        A position counts for a part by the share of its pixels that belong to it. A part that no pixel belongs to gets
        the direction of ``-centers``, whatever the image.

        Args:
            backbone: The network.
            dictionary: Of the parts.
            images: [N, 3, H, W], uint8 or float in 0..255.
            masks: Of all slots of the dictionary [N, K, H, W].

        Returns:
            [N, K, C], unit length; of the background slot as if no pixel belonged to it.
        """
        parts = masks[:, : dictionary.config.num_parts]
        shown = self.show(images, parts, backbone.pixel_mean)
        own = {name: getattr(self.statistics, attribute) for name, attribute in self._names.items()}
        x = self.standardization(functional_call(backbone, own, (shown,)))
        shares = _shares(parts, (x.shape[2], x.shape[3]), backbone.stride)
        shares = F.pad(shares, (0, 0, 0, 0, 0, 1))
        if self.config.masks == "together":
            return dictionary.pool(x, shares)
        K = parts.shape[1]
        alone = torch.eye(K, K + 1, dtype=shares.dtype, device=shares.device)[None, :, :, None, None]
        regions = dictionary.pool(x, (shares.unsqueeze(1) * alone).flatten(0, 1)).unflatten(0, (-1, K))
        every = regions.diagonal(dim1=1, dim2=2).transpose(1, 2)  # part k of the look at part k
        return torch.cat([every, regions[:, 0, -1:]], 1)


def _statistics(backbone: Backbone) -> dict[str, Tensor]:
    """Buffers of the batch norms by their names."""
    norms = [(name, module) for name, module in backbone.named_modules() if isinstance(module, _BatchNorm)]
    return {f"{name}.{own}": value for name, module in norms for own, value in module.named_buffers(recurse=False)}


@without_autocast
def _hard(assign: Tensor, size: tuple[int, int], through: bool) -> Tensor:
    """See ``SecondStage.masks``; ``through`` lets gradients pass."""
    strongest = part_map(assign, size)
    slots = torch.arange(assign.shape[1], device=assign.device).view(1, -1, 1, 1)
    hard = (strongest.unsqueeze(1) == slots).to(assign.dtype)
    if not through:
        return hard
    soft = F.interpolate(assign, size, mode="bilinear", align_corners=False)
    return hard + (soft - soft.detach())  # what is added is 0 to the bit


@without_autocast
def _shares(masks: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Share of the pixels of every position that belong to a part: masks [N, K, H, W] -> [N, K, *size].

    The mean over a part has gradients as large as the part is small, so one of less than a position passes none.
    """
    height, width = size
    beyond = (0, width * stride - masks.shape[3], 0, height * stride - masks.shape[2])
    shares = F.avg_pool2d(F.pad(masks, beyond), stride)
    return torch.where(shares.sum((2, 3), keepdim=True) < 1, shares.detach(), shares)
