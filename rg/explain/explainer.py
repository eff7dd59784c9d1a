"""A trained model that explains images: which parts it found, and how much each counted for the label."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast, get_args, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.batches.geometry import central_start
from pipelines.exif import exif_place
from pipelines.images import open_rgb
from pipelines.places import UNKNOWN, Place
from rg.config import RunConfig, View
from rg.explain.choices import choices_of_images
from rg.explain.explanation import Explanation, Explanations
from rg.explain.facts import Box, PartExplanation, PlaceExplanation, Rival, at_image_size, covering
from rg.explain.lookahead import in_order
from rg.model.build import said
from rg.model.device import pick_device
from rg.model.evaluating import evaluating
from rg.model.grids import mesh
from rg.model.maps import part_centers
from rg.model.region_grouping import ModelOutput, RegionGroupingModel
from rg.model.scops import ScopsModel
from rg.runs import inputs
from rg.runs.confidence import Confidence, probabilities, read_confidence
from rg.runs.folder import Classes, load_with_parts
from rg.runs.frequencies import read_frequencies
from rg.runs.part_names import Part, read_parts, unnamed

logger = logging.getLogger(__name__)

VIEWS = ("auto", "whole", "crop")
MAX_ASPECT = 4
ZOOM_LINES = 17  # of a sampler's grid, either way
_process: int | None = None  # in which the first model was loaded or used
ImageLike = str | os.PathLike | Image.Image | np.ndarray
PlaceLike: TypeAlias = Place | Literal["exif"] | None


class _Waiting(NamedTuple):
    """An image that the model is about to see.

    Attributes:
        pixels: uint8 [H, W, 3], the image in the explanation.
        shown: uint8 [3, h, w], what the model is shown.
        window: What that is of the image.
        source: Path of the image, if it came from a file.
        photo_size: Width and height of the photo, of which the image may be a smaller copy.
        place: Where and when the photo was taken, as far as the model is told.
    """

    pixels: np.ndarray
    shown: Tensor
    window: Box
    source: str | None
    photo_size: tuple[int, int]
    place: Place | None


class Explainer:
    """A trained model that explains images. Made by ``rg.load``.

    Args:
        model: Trained.
        config: Of the run.
        classes: Names of the classes.
        device: Where the model is to run.
        parts: Their names and kinds; as the model sees them if None.
        confidence: Calibrates the probabilities and says when to withhold the label; neither if None.
        confidences: The same where it was fitted in other views than that of the run, by evaluation view.
        frequencies: Shares of images in which the parts occur; None if nobody knows.

    Attributes:
        model: In evaluation mode.
        config: Of the run.
        classes: Names of the classes.
        device: Where the model runs.
        parts: Name and kind of every part.
        confidence: Temperature and thresholds fitted on the validation split of the run; None if there are none.
        confidences: The same in other views than that of the run, by evaluation view.
        frequencies: Shares of the images of the evaluated split in which the parts occur; None if there are none.
    """

    def __init__(
        self,
        model: RegionGroupingModel | ScopsModel,
        config: RunConfig,
        classes: Classes,
        device: torch.device,
        parts: Sequence[Part] | None = None,
        confidence: Confidence | None = None,
        confidences: Mapping[str, Confidence | None] | None = None,
        frequencies: Sequence[float] | None = None,
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()
        self.config = config
        self.classes = classes
        self.device = device
        self.parts = tuple(parts or unnamed(model.background.tolist(), config.model.grouping.background))
        self.confidence = confidence
        self.confidences = dict(confidences or {})
        self.frequencies = frequencies

    @classmethod
    def load(cls, run: str | os.PathLike, device: str = "auto") -> Explainer:
        """Read a run folder; see ``rg.load``."""
        _check_process()
        model, config, classes = load_with_parts(Path(run))
        parts = read_parts(Path(run), model.background.tolist(), config.model.grouping.background)
        others = {view: read_confidence(Path(run), view) for view in get_args(View) if view != config.evaluation.view}
        confidence, frequencies = read_confidence(Path(run)), read_frequencies(Path(run))
        return cls(model, config, classes, pick_device(device), parts, confidence, others, frequencies)

    # A string is a sequence of strings, too; checkers take the first that fits, which is what happens.
    @overload
    def explain(  # type: ignore[overload-overlap]
        self,
        images: ImageLike,
        *,
        view: str = "auto",
        top_k: int = 5,
        batch_size: int = 16,
        versus: str | None = None,
        place: PlaceLike = None,
    ) -> Explanation: ...

    @overload
    def explain(
        self,
        images: Iterable[ImageLike],
        *,
        view: str = "auto",
        top_k: int = 5,
        batch_size: int = 16,
        versus: str | None = None,
        place: PlaceLike = None,
    ) -> Explanations: ...

    def explain(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        view: str = "auto",
        top_k: int = 5,
        batch_size: int = 16,
        versus: str | None = None,
        place: PlaceLike = None,
    ) -> Explanation | Explanations:
        """Explain one image or a list of images.

        Args:
            images: A path, a PIL image (any mode, size and orientation) or a uint8 array [H, W, 3], or a list of them.
            view: ``whole`` shows the model the whole image (fully convolutional, at the size of testing); ``crop`` the
                central square that it is tested on; ``auto`` the whole image if the backbone takes images of any size.
            top_k: Number of best classes to name.
            batch_size: Images in one pass through the model, if they have the same shape.
            versus: The class that the label is compared with; the runner-up if None.
            place: Where and when the images were taken, all of them; or ``exif``, what each file says of that itself.
                None tells the model nothing.

        Returns:
            An ``Explanation`` of one image; of several, a list of them in the same order (``Explanations``).

        Raises:
            ValueError: an image cannot be decoded, an argument is off, or the whole image is asked for and the backbone
                takes no other size than that of testing; or the run was trained without places, and one is given.
        """
        single = isinstance(images, ImageLike | bytes) or not isinstance(images, Iterable)
        several = cast("Iterable[ImageLike]", [images] if single else images)
        explanations = self.stream(several, view=view, top_k=top_k, batch_size=batch_size, versus=versus, place=place)
        return next(explanations) if single else Explanations(explanations)

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        view: str = "auto",
        top_k: int = 5,
        batch_size: int = 16,
        versus: str | None = None,
        place: PlaceLike = None,
        failed: Callable[[ImageLike, str], None] | None = None,
        longest_side: int | None = None,
        jobs: int = 1,
    ) -> Iterator[Explanation]:
        """Explain images one after the other; memory holds one batch of them, and two images per job.

        Args:
            images: See ``explain``; any number.
            view: See ``explain``.
            top_k: See ``explain``.
            batch_size: See ``explain``.
            versus: See ``explain``.
            place: See ``explain``.
            failed: Called with an image that cannot be read, and with the reason in one line; that image is left out.
                If None, such an image is an error.
            longest_side: Of the image in the explanation, in pixels. Larger photos are scaled down for the
                explanation, not for the model.
            jobs: Threads that decode and resize ahead of the model.

        Yields:
            One explanation per image, in the order of the images.

        Raises:
            ValueError: see ``explain``.
        """
        _check_process()
        if min(top_k, batch_size, jobs) < 1:
            raise ValueError(f"top_k, batch_size, jobs: expected at least 1, got {top_k}, {batch_size}, {jobs}")
        if versus is not None and isinstance(self.model, ScopsModel):
            raise ValueError(f"versus: expected None, as the run learned without labels and names none, got {versus!r}")
        if versus is not None and versus not in self.classes.names:
            raise ValueError(f"versus: expected one of the {len(self.classes.names)} classes, got {versus!r}")
        self.check_place(place)
        view = self.resolve_view(view)

        def prepare(image: ImageLike) -> tuple[ImageLike, _Waiting | ValueError | OSError]:
            try:
                return image, self._prepare(image, view, longest_side, place)
            except (ValueError, OSError) as error:
                return image, error

        def explain(waiting: Sequence[_Waiting]) -> Iterator[Explanation]:
            for image, explanation in zip(waiting, self._explain(waiting, view, top_k, versus), strict=True):
                yield replace(explanation, photo_size=image.photo_size)

        waiting: list[_Waiting] = []
        with ThreadPoolExecutor(jobs) as pool:
            for image, prepared in in_order(pool, prepare, images, 2 * jobs):
                if not isinstance(prepared, _Waiting):
                    if failed is None:
                        raise prepared
                    failed(image, str(prepared))
                    continue
                if waiting and (len(waiting) == batch_size or waiting[0].shown.shape != prepared.shown.shape):
                    yield from explain(waiting)
                    waiting = []
                waiting.append(prepared)
            if waiting:
                yield from explain(waiting)

    def check_place(self, place: PlaceLike) -> None:
        """Refuse to be told where and when a photo was taken if that tells the model nothing.

        Raises:
            ValueError: the run was trained without places, or it is no place.
        """
        if place is None:
            return
        if not (place == "exif" or isinstance(place, Place)):
            raise ValueError(f"place: expected a Place, 'exif' or None, got {place!r}")
        if self.model.place is None:
            raise ValueError(f"place: expected None, as the run was trained without places (model.place), got {place}")

    def _prepare(self, image: ImageLike, view: str, longest_side: int | None, place: PlaceLike) -> _Waiting:
        source = os.fspath(image) if isinstance(image, str | os.PathLike) else None
        pixels = _open(image)
        if place == "exif":
            if source is None:
                raise ValueError(f"place: expected a Place of an image that is no file, got {place!r}")
            place = exif_place(Path(source).read_bytes())
        shown, window = self._window(pixels, view)
        photo_width, photo_height = photo_size = pixels.size
        if longest_side and max(photo_size) > longest_side:
            scale = longest_side / max(photo_size)
            width, height = max(1, round(photo_width * scale)), max(1, round(photo_height * scale))
            x0, x1 = (x * width / photo_width for x in window[::2])
            y0, y1 = (y * height / photo_height for y in window[1::2])
            window = covering((x0, y0, x1, y1), (height, width))
            pixels = pixels.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return _Waiting(np.asarray(pixels), shown, window, source, photo_size, place)

    def resolve_view(self, view: str) -> str:
        """``whole`` or ``crop``, also for ``auto``.

        Raises:
            ValueError: it is none of these, or the backbone takes images of one size only.
        """
        if view not in VIEWS:
            raise ValueError(f"view: expected one of {', '.join(VIEWS)}, got {view!r}")
        if view == "auto":
            return self._auto_view
        if view == "whole" and not self._takes_any_size:
            raise ValueError(f"view: expected crop or auto, as {self._one_size}, got {view!r}")
        return view

    def confidence_in(self, view: str) -> Confidence | None:
        """What was fitted on images in this view, ``whole`` or ``crop``; else that of the run."""
        return self.confidences.get("whole" if view == "whole" else "input") or self.confidence

    @cached_property
    def _takes_any_size(self) -> bool:
        """Whether the backbone takes images of other shapes than the square that it is tested on."""
        return self.model.takes_any_size(self.config.input.test_size[1])

    @property
    def _one_size(self) -> str:
        """What takes squares alone, in words."""
        what, crop = self.config.model.backbone.name, self.config.input.test_size[1]
        return f"{'a sampler' if self.model.sampler else what} takes images of {crop}x{crop} only"

    @cached_property
    def _auto_view(self) -> str:
        if self.config.input.view == "stretch":
            return "crop"
        if self._takes_any_size:
            return "whole"
        logger.warning("%s: explaining the central square of every image", self._one_size)
        return "crop"

    def _window(self, image: Image.Image, view: str) -> tuple[Tensor, Box]:
        """What the model is shown, uint8 [3, h, w], and which box of the image that is."""
        geometry = inputs.evaluation_geometry(self.config.input)
        width, height = image.size
        short, stride = min(width, height), self.model.backbone.stride

        def whole_positions(length: float) -> int:
            """Pixels for so many of the image, a multiple of the stride."""
            return max(1, round(geometry.short_side * length / short / stride)) * stride

        if view == "crop":
            central = geometry.central_window(width, height)
            window_width, window_height = central.width, central.height
            columns, rows = central.columns, central.rows
        else:
            # A panorama is cut to its middle before it fills the memory.
            window_width, window_height = min(width, MAX_ASPECT * short), min(height, MAX_ASPECT * short)
            columns, rows = whole_positions(window_width), whole_positions(window_height)
        x0, y0 = central_start(width, window_width), central_start(height, window_height)
        window = (x0, y0, x0 + window_width, y0 + window_height)
        resized = image.crop(window).resize((columns, rows), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1), window

    def _explain(self, waiting: Sequence[_Waiting], view: str, top_k: int, versus: str | None) -> Iterator[Explanation]:
        with evaluating(self.model):  # left before the caller goes on with the first explanation
            explanations = self._explanations(waiting, view, top_k, versus)
            first = next(explanations)
        yield first
        yield from explanations

    def _explanations(
        self, waiting: Sequence[_Waiting], view: str, top_k: int, versus: str | None
    ) -> Iterator[Explanation]:
        """One for each image; all of the model is done when the first is there."""
        shown = torch.stack([image.shown for image in waiting]).to(self.device)
        places = torch.tensor([image.place.numbers if image.place else UNKNOWN for image in waiting])
        output = said(self.model, shown, places)
        if not isinstance(self.model, RegionGroupingModel):
            yield from self._without_label(waiting, output)
            return
        zoom = None
        if self.model.sampler:
            zoom = (mesh(self.model.sampler(shown).nodes, ZOOM_LINES).float().cpu().numpy() + 1) / 2
        confidence = self.confidence_in(view)
        best = output.logits.topk(min(max(top_k, 2), output.logits.shape[1]), dim=1).indices
        compared = best[:, :2].clone()  # the label and its rival
        if versus is not None and compared.shape[1] == 2:
            index = self.classes.names.index(versus)
            compared[:, 1] = torch.where(compared[:, 0] == index, compared[:, 1], index)
        contributions, constants = self.model.contributions(output, compared)
        attention = output.attention
        if self.classes.multi_label:
            attention = attention[torch.arange(len(waiting)), compared[:, 0]]
        centers = part_centers(output.assign).cpu().numpy()
        assign, attention = output.assign.float().cpu().numpy(), attention.float().cpu().numpy()
        presence, names = output.presence.tolist(), self.classes.names
        # All at once: from here on numbers are read one by one, each of which a GPU would be waited for.
        logits = output.logits.float().cpu().numpy()
        temperature = confidence.temperature if confidence else None
        probable = probabilities(logits, temperature, self.classes.multi_label)
        choices = None
        if not self.classes.multi_label:
            choices = choices_of_images(self.model, output, self.classes.names, temperature)
        top = best.cpu()
        told, without = None, logits.argmax(1)
        if output.place is not None:
            told = output.place.gather(1, compared).float().cpu()
            without = (output.logits - output.place).argmax(1).cpu().numpy()
        compared = compared.cpu()
        contributions, constants, occurrence = contributions.cpu(), constants.cpu(), output.occurrence.cpu()
        for n, image in enumerate(waiting):
            strongest, attribution = at_image_size(assign[n], attention[n], image.window, image.pixels.shape[:2])
            label, *rest = compared[n].tolist()
            rival = None
            if rest:
                probability, logit = (float(values[n, rest[0]]) for values in (probable, logits))
                rival = Rival(names[rest[0]], probability, logit, constants[n, 1].item())
            yield Explanation(
                label=names[label],
                probability=float(probable[n, label]),
                logit=float(logits[n, label]),
                constant=float(constants[n, 0]),
                top_k=[(names[index], float(probable[n, index])) for index in top[n].tolist()][:top_k],
                rival=rival,
                attribution=attribution,
                assign=assign[n],
                parts=self._parts(strongest, image.window, centers[n], occurrence[n], attention[n], contributions[n]),
                image=image.pixels,
                window=image.window,
                source=image.source,
                multi_label=self.classes.multi_label,
                calibrated=temperature is not None,
                answer=confidence.answer(probable[n, label], presence[n]) if confidence else "label",
                zoom=None if zoom is None else zoom[n],
                place=None if told is None else _place(image.place, told[n].tolist(), names[without[n]]),
                choices=choices[n] if choices else None,
            )

    def _without_label(self, waiting: Sequence[_Waiting], output: ModelOutput) -> Iterator[Explanation]:
        """One for each image, of a model that names no class: the parts alone."""
        centers = part_centers(output.assign).cpu().numpy()
        assign, attention, occurrence = (
            values.float().cpu().numpy() for values in (output.assign, output.attention, output.occurrence)
        )
        nothing = torch.zeros(1, len(self.parts))
        for n, image in enumerate(waiting):
            strongest, attribution = at_image_size(assign[n], attention[n], image.window, image.pixels.shape[:2])
            yield Explanation(
                label="",
                probability=0.0,
                logit=0.0,
                constant=0.0,
                top_k=[],
                rival=None,
                attribution=attribution,
                assign=assign[n],
                parts=self._parts(strongest, image.window, centers[n], occurrence[n], attention[n], nothing),
                image=image.pixels,
                window=image.window,
                source=image.source,
                answer="none",
            )

    def _parts(
        self,
        strongest: np.ndarray,
        window: Box,
        centers: np.ndarray,
        occurrence: np.ndarray | Tensor,
        attention: np.ndarray,
        contributions: Tensor,
    ) -> list[PartExplanation]:
        """The parts of one image: centres [K, 2], occurrence and attention [K], contributions [1 or 2, K]."""
        x0, y0, x1, y1 = window
        return [
            PartExplanation(
                index=k,
                name=part.name,
                strongest=strongest,
                center=(float(x0 + centers[k, 0] * (x1 - x0)), float(y0 + centers[k, 1] * (y1 - y0))),
                occurrence=float(occurrence[k]),
                frequency=self.frequencies[k] if self.frequencies else None,
                attention=float(attention[k]),
                contribution=float(contributions[0, k]),
                rival_contribution=float(contributions[1, k]) if len(contributions) > 1 else 0.0,
                background=part.background,
                off=part.off,
                merged_into=part.merged_into,
            )
            for k, part in enumerate(self.parts)
        ]


def _place(place: Place | None, contributions: Sequence[float], label_without: str) -> PlaceExplanation | None:
    """What a place adds to the logits of the label and, if there is one, its rival; None if nothing of it is known."""
    if place is None:
        return None
    rival = contributions[1] if len(contributions) > 1 else 0.0
    located, dated = place.latitude is not None, place.day is not None
    return PlaceExplanation(located, dated, contributions[0], rival, label_without)


def _check_process() -> None:
    """Refuse to wait for threads that a fork has not taken along.

    OpenMP's threads, on which PyTorch computes, stay in the parent; a child that needs several waits for them forever.

    Raises:
        ValueError: a model was loaded or used in the process that this one was forked from.
    """
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid() and torch.get_num_threads() > 1:
        raise ValueError(
            "explain: PyTorch computed before this process was forked, and its threads do not survive that; start "
            "processes by multiprocessing.get_context('spawn'), or call torch.set_num_threads(1) in them first"
        )


def _open(image: ImageLike) -> Image.Image:
    """Upright RGB."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return Image.fromarray(image)
        got = f"{image.dtype} {list(image.shape)}"
    elif isinstance(image, ImageLike):
        return open_rgb(image)
    else:
        got = type(image).__name__
    raise ValueError(f"images: expected a path, a PIL image or a uint8 array [H, W, 3], or a list of them, got {got}")
