"""The keys of a data spec, checked: what a config's `data` may say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from mmjax.build import build
from mmjax.data.image import ImageOptions
from mmjax.data.templates import open_template
from mmjax.data.views import Views
from mmjax.errors import UserError
from mmjax.typed import Byte, Count, Natural, NotNegative, Share


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """path, root: as for sources.open_source. weight: its share of the mixture, in proportion to the others.
    template: of this source, '' for that of the data. augment: 'dihedral' turns and mirrors its pictures.
    turns: 'together' for a conversation as it stands, 'apart' for each question as an example of its own, so that
    no answer can be read off those before it (rows.py). special_tokens: names of special tokens that its replies
    may spell, such as '<|box_start|>'; what else spells one is letters."""

    path: str
    root: str
    weight: NotNegative
    template: str = ""
    augment: Literal["", "dihedral"] = ""
    turns: Literal["together", "apart"] = "together"
    special_tokens: tuple[str, ...] = ()

    def __post_init__(self):
        if self.template:
            open_template(self.template)


@dataclasses.dataclass(frozen=True)
class MediaSpec:
    """slots: media a row has room for, each a picture or a tile of one; 0 for text alone.
    views: how a picture becomes media, `type` and keys of a class in data/views.py; None for one square. token:
    name of the token that stands in the text where projected ones come. The other keys are those of
    image.ImageOptions, of one medium."""

    slots: Natural
    size: Count
    resize: str
    max_pixels: Count
    resample: str = ImageOptions.resample
    fill: tuple[Byte, Byte, Byte] = ImageOptions.fill
    edge: int = ImageOptions.edge
    views: Mapping[str, Any] | None = None
    token: str = "<image>"

    def __post_init__(self):
        _ = self.make_views()  # checks the other keys

    @property
    def options(self) -> ImageOptions:
        return ImageOptions(self.size, self.resize, self.max_pixels, self.resample, self.fill, self.edge)

    def make_views(self) -> Views:
        """What `views` describes."""
        made = build(
            self.views or {"type": "data.views.Whole"},
            "views",
            room=("data.views", "data.patches"),
            options=self.options,
        )
        if missing := [name for name in ("sized", "axes", "layout", "cut", "empty") if not hasattr(made, name)]:
            raise UserError(f"views.type: {self.views['type']} prepares no pictures: it has no {missing[0]!r}.")
        return made


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """length: tokens of a row. pack: several examples a row, or one. too_long: 'truncate' or 'refuse' what is
    longer than a row. template: a name, 'file:PATH' or 'jinja:SOURCE' (templates.py). sources: the mixture; one
    that is None is left out. max_refused: share of a source's records that may be refused before the run stops.
    workers: processes that load rows, 0 for none. threads: threads in each of them."""

    length: Count
    pack: bool
    too_long: Literal["truncate", "refuse"]
    template: str
    bidirectional_images: bool
    media: MediaSpec
    sources: Mapping[str, SourceSpec | None]
    max_refused: Share
    workers: Natural
    threads: Count

    @property
    def prompt_template(self) -> str:
        """The template that most of the data is written down by, and so prompts: of the source with the largest
        weight, the first of several."""
        most = max(self.sources.values(), key=lambda source: source.weight)
        return most.template or self.template

    def __post_init__(self):
        open_template(self.template)
        object.__setattr__(self, "sources", {name: one for name, one in self.sources.items() if one is not None})
        if not self.sources:
            raise UserError("sources: there are none.")
        if not any(source.weight for source in self.sources.values()):
            raise UserError("sources: none has a weight above 0.")
        for name, source in self.sources.items():
            if source.augment and self.media.make_views().sized:
                raise UserError(f"sources.{name}.augment: pictures in tiles cannot be turned.")
