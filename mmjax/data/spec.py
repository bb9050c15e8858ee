"""The keys of a data spec, checked: what a config's `data` may say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmjax.build import build, suggest
from mmjax.data.image import ImageOptions
from mmjax.data.templates import open_template
from mmjax.data.views import Views
from mmjax.errors import UserError
from mmjax.typed import check_types, hints_of

AUGMENT = ("", "dihedral")
TOO_LONG = ("truncate", "refuse")
TURNS = ("together", "apart")


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """path, root: as for sources.open_source. weight: its share of the mixture, in proportion to the others.
    template: of this source, '' for that of the data. augment: 'dihedral' turns and mirrors its pictures.
    turns: 'together' for a conversation as it stands, 'apart' for each question as an example of its own, so that
    no answer can be read off those before it (rows.py)."""

    path: str
    root: str
    weight: float
    template: str = ""
    augment: str = ""
    turns: str = "together"

    def __post_init__(self):
        _one_of("augment", self.augment, AUGMENT)
        _one_of("turns", self.turns, TURNS)
        if not 0 <= self.weight < math.inf:
            raise UserError(f"weight: {self.weight} is no number from 0 on.")
        if self.template:
            open_template(self.template)


@dataclasses.dataclass(frozen=True)
class MediaSpec:
    """slots: media a row has room for, each a picture or a tile of one; 0 for text alone.
    views: how a picture becomes media, `type` and keys of a class in data/views.py; None for one square. token:
    name of the token that stands in the text where projected ones come. The other keys are those of
    image.ImageOptions, of one medium."""

    slots: int
    size: int
    resize: str
    max_pixels: int
    resample: str = ImageOptions.resample
    fill: tuple[int, int, int] = ImageOptions.fill
    edge: int = ImageOptions.edge
    views: Mapping[str, Any] | None = None
    token: str = "<image>"

    def __post_init__(self):
        if self.slots < 0 or self.size < 1:
            raise UserError(f"slots: {self.slots} pictures of size {self.size} cannot be.")
        _ = self.make_views()  # checks the other keys

    @property
    def options(self) -> ImageOptions:
        return ImageOptions(self.size, self.resize, self.max_pixels, self.resample, tuple(self.fill), self.edge)

    def make_views(self) -> Views:
        """What `views` describes."""
        made = build(self.views or {"type": "data.views.Whole"}, "views", options=self.options)
        if missing := [name for name in ("sized", "axes", "layout", "cut", "empty") if not hasattr(made, name)]:
            raise UserError(f"views.type: {self.views['type']} prepares no pictures: it has no {missing[0]!r}.")
        return made


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """length: tokens of a row. pack: several examples a row, or one. too_long: 'truncate' or 'refuse' what is
    longer than a row. template: a name, 'file:PATH' or 'jinja:SOURCE' (templates.py). max_refused: share of a
    source's records that may be refused before the run stops. workers: processes that load rows, 0 for none.
    threads: threads in each of them."""

    length: int
    pack: bool
    too_long: str
    template: str
    bidirectional_images: bool
    media: MediaSpec
    sources: Mapping[str, SourceSpec]
    max_refused: float
    workers: int
    threads: int

    def __post_init__(self):
        _one_of("too_long", self.too_long, TOO_LONG)
        open_template(self.template)
        if not self.sources:
            raise UserError("sources: there are none.")
        if self.length < 1 or self.threads < 1 or self.workers < 0:
            raise UserError("length and threads must be 1 or more, workers 0 or more.")
        if not 0 <= self.max_refused <= 1:
            raise UserError(f"max_refused: {self.max_refused} is no share from 0 to 1.")
        for name, source in self.sources.items():
            if source.augment and self.media.make_views().sized:
                raise UserError(f"sources.{name}.augment: pictures in tiles cannot be turned.")


def read_spec(spec: Mapping[str, Any]) -> DataSpec:
    """A plain mapping to a checked spec.

    Raises:
      UserError: an unknown or missing key, or a value that cannot be; names its path and the nearest right key.
    """
    check_types({"data": spec}, {"data": Mapping[str, Any]}, "config")
    spec = dict(spec)
    check_types(spec, {"media": Mapping[str, Any], "sources": Mapping[str, Mapping[str, Any] | None]}, "data")
    if "media" in spec:
        spec["media"] = _read(MediaSpec, spec["media"], "data.media")
    if "sources" in spec:
        sources = {name: one for name, one in spec["sources"].items() if one is not None}
        spec["sources"] = {n: _read(SourceSpec, one, f"data.sources.{n}") for n, one in sources.items()}
    return _read(DataSpec, spec, "data")


def _read(cls: type, values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: must be a section of keys, not {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise UserError(f"{where}: there is no key {key!r}" + suggest(key, fields))
    missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in values]
    if missing:
        raise UserError(f"{where}: wants {', '.join(missing)}.")
    check_types(values, hints_of(cls), where)
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}.{error}") from error


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{key}: {value!r} is none of {', '.join(map(repr, known))}.")
