"""What all kinds of model have: a backbone, perhaps a sampler that chooses the pixels it sees, and a term of places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rg.config import PlaceConfig, SamplerConfig
from rg.model.backbones import Backbone
from rg.model.edits import Edits
from rg.model.grids import carry_back
from rg.model.place import PlaceTerm
from rg.model.samplers import Sampled, build_sampler

NO_PLACE = PlaceConfig()


class SampledModel(nn.Module):
    """A model behind a sampler, or behind none.

    Args:
        backbone: Feature extractor.
        sampler_config: What chooses the pixels that it sees.
        num_classes: Number of classes, or of attributes.
        multi_label: Attributes instead of classes.
        pretrained: Load the weights of the sampler's network; False when a checkpoint follows.
        place_config: What places add to the logits.

    Attributes:
        sampler: That, or None.
        backbone: Feature extractor.
        place: What places add to the logits, or None.
        edits: Which parts are switched off or merged; none in training.

    Raises:
        ValueError: the sampler cannot be built, or is trilinear with attributes.
    """

    def __init__(
        self,
        backbone: Backbone,
        sampler_config: SamplerConfig,
        num_classes: int,
        multi_label: bool,
        pretrained: bool,
        place_config: PlaceConfig = NO_PLACE,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sampler = build_sampler(sampler_config, num_classes, multi_label, pretrained)
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.edits = Edits()
        # Its random numbers are drawn aside, so that the other layers begin as they do without it.
        with torch.random.fork_rng(devices=[]):
            self.place = PlaceTerm(place_config, num_classes) if place_config.on else None

    def place_logits(self, places: Tensor | None, seeds: Tensor | None) -> Tensor | None:
        """What places [N, 3] add to the logits [N, classes]; None without places. See ``PlaceTerm.forward``.

        Raises:
            ValueError: the model knows nothing of places.
        """
        if places is None:
            return None
        if self.place is None:
            raise ValueError("places: expected None, as the model has no term for places (model.place.on), got some")
        return self.place(places, seeds)

    def takes_any_size(self, side: int) -> bool:
        """Whether images of other shapes than a square of ``side`` pixels pass; behind a sampler none do."""
        return not self.sampler and self.backbone.takes_any_size(side)

    def seen(self, images: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Images [N, 3, H, W], uint8 or float in 0..255 -> what the backbone sees of them.

        With the nodes of a grid it is seen through that, instead of one that the sampler makes of the images.
        """
        if not self.sampler:
            return images
        return self.sampler(images).images if nodes is None else self.sampler.sample(images, nodes, None)

    @torch.no_grad()
    def onto_images(self, maps: Tensor, images: Tensor) -> Tensor:
        """Maps of what the backbone sees as maps of the images themselves.

        Args:
            maps: [N, K, h, w].
            images: [N, 3, H, W], uint8 or float in 0..255.

        Returns:
            [N, K, h', w'] with the stride of the backbone on the images; without a sampler the maps as they are.
        """
        return self.carry_back(maps, self.sampler(images), images) if self.sampler else maps

    def carry_back(self, maps: Tensor, sampled: Sampled, images: Tensor) -> Tensor:
        """``onto_images`` where it is known what the sampler makes of the images."""
        stride = self.backbone.stride
        size = (max(1, images.shape[2] // stride), max(1, images.shape[3] // stride))
        assert self.sampler is not None
        return carry_back(maps, self.sampler.inverse(sampled.nodes.detach(), size))

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the pretrained networks, and all others (the new layers)."""
        pretrained = list(self.backbone.parameters())
        if self.sampler:
            pretrained += self.sampler.network.parameters()
        known = set(map(id, pretrained))
        return pretrained, [parameter for parameter in self.parameters() if id(parameter) not in known]
