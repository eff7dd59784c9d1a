"""What a request may ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from starlette.exceptions import HTTPException

from pipelines.places import Place

TOLD = ("latitude", "longitude", "date")


@dataclasses.dataclass(frozen=True)
class Question:
    """What a request asks for.

    Attributes:
        top_k: Number of best classes to name.
        versus: The class that the label is compared with; the runner-up if None.
        pictures: Whether pictures are part of the answer.
        format: json, or png for one picture that shows everything.
        view: What the model is shown of the picture, see ``Explainer.explain``.
        place: Where and when it was taken; None if the model is not told.
    """

    top_k: int = 5
    versus: str | None = None
    pictures: bool = False
    format: str = "json"
    view: str = "auto"
    place: Place | None = None

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Question:
        """From the query of an address.

        Raises:
            HTTPException: 400, a field is unknown or its value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)} - {"place"} | set(TOLD)
        if unknown := sorted(set(query) - known):
            raise HTTPException(400, f"query: expected {', '.join(sorted(known))}, got {unknown[0]!r}")
        top_k, pictures = query.get("top_k", "5"), query.get("pictures", "false")
        form = query.get("format", "json")
        if not (top_k.isascii() and top_k.isdecimal() and len(top_k) <= 4 and 1 <= int(top_k) <= 1000):
            raise HTTPException(400, f"top_k: expected 1 to 1000, got {top_k[:20]!r}")
        if pictures not in ("true", "false"):
            raise HTTPException(400, f"pictures: expected true or false, got {pictures!r}")
        if form not in ("json", "png"):
            raise HTTPException(400, f"format: expected json or png, got {form!r}")
        try:
            place = Place.read(*(query.get(name, "")[:40] for name in TOLD))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        return cls(int(top_k), query.get("versus"), pictures == "true", form, query.get("view", "auto"), place)
