"""From what is chosen on the page of demo.py to images. Nothing here knows the page, or keeps anything of a request."""

import dataclasses
import io
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch

from stylegan2_icgan.conditioning import (
    LONGEST_STEM,
    Choice,
    Rows,
    from_exemplars,
    from_images,
    num_exemplars,
    with_class,
)
from stylegan2_icgan.models import Model
from stylegan2_icgan.search.unit_rows import UnitRows
from stylegan2_icgan.using.encoding import encode
from stylegan2_icgan.using.flags import Flags
from stylegan2_icgan.using.nearest import Neighbourhood, nearest
from stylegan2_icgan.using.rendering import Renderer
from stylegan2_icgan.using.walks import Place, between
from torch_utils.command_line import LARGEST, UserError
from torch_utils.images import ImageRefused, decode_image, encode_png, read_file
from training.image_grid import picture, sheet, sheet_scale
from training.sampling import z_from_seeds

MOST_SHOWN = 96  # exemplars one can click on; the others are chosen by number
MOST_SAMPLES = 16
FRAMES = 8  # from one instance to the other, both included
UPLOAD_BYTES = 10 << 20
UPLOAD_PIXELS = 50_000_000  # 150 MB once decoded
UPLOAD_FORMATS = {"PNG": [".png"], "JPEG": [".jpg", ".jpeg"], "WEBP": [".webp"], "GIF": [".gif"], "BMP": [".bmp"]}
PATH = "spherical"  # what interpolate.py takes where nobody says


@dataclass(frozen=True)
class Settings:
    """What the controls of the page say.

    Raises:
        UserError: a value that no control has.
    """

    trunc: float = 1.0
    seed: int = 0  # of the first sample
    count: int = 8  # samples
    mix: float = 0.0  # 0: instance A, 1: instance B
    label: int | None = None  # None: the classes of the instances

    def __post_init__(self) -> None:
        if not 0 <= self.trunc <= 1:
            raise UserError(f"Truncation is {self.trunc}; expected 0 to 1.")
        if not 0 <= self.mix <= 1:
            raise UserError(f"The mix is {self.mix}; expected 0 (all of A) to 1 (all of B).")
        if not 1 <= self.count <= MOST_SAMPLES:
            raise UserError(f"The number of samples is {self.count}; expected 1 to {MOST_SAMPLES}.")
        if not 0 <= self.seed < LARGEST - MOST_SAMPLES:
            raise UserError(f"The seed is {self.seed}; expected 0 to {LARGEST - MOST_SAMPLES - 1}.")


class Shown(NamedTuple):
    """Images with their names."""

    images: torch.Tensor  # uint8 [N, C, H, W]
    names: list[str]


class Answers:
    """One model for everybody who has the page open.

    What a request asks comes with it, and what it gets is returned. The networks make one image at a time, whoever it
    is for.

    Args:
        data: training images with stored features, to show the nearest of; None: the exemplars of the snapshot.
        num_nearest: how many of them are shown.
        extractor_weights: local weights of the model's extractor.

    Raises:
        UserError: data or weights that are not this model's, or a snapshot without exemplars.
    """

    def __init__(
        self, model: Model, data: Path | None = None, num_nearest: int = 6, extractor_weights: Path | None = None
    ) -> None:
        self.model, self.weights, self.num_nearest = model, extractor_weights, num_nearest
        self.shape = model.recipe.shape
        if (self.shape.h_dim or self.shape.c_dim) and not len(model.exemplars):
            raise UserError(
                f"--network={model.path} has no exemplars to pick from; use generate.py with --instance-feats or "
                "--instance-images"
            )
        self.data = None if data is None else Neighbourhood(model, data, num_nearest)
        self.no_uploads = self._why_no_uploads()
        self.generator = model.generator  # built before anybody asks
        self._networks = threading.Lock()

    def _why_no_uploads(self) -> str:
        """'' where an image can become an instance; else the reason why not."""
        stored = self.model.exemplars
        if not self.shape.h_dim or not stored.extractor:
            if self.weights is not None:
                raise UserError(f"--extractor-weights={self.weights}: this model has no extractor; leave it out")
            return "This model can't be conditioned on other images."
        try:
            self.model.extractor(self.weights)
        except UserError as error:
            if self.weights is not None:
                raise
            return f"Other images can't be used: {error}"
        return ""

    @property
    def num_instances(self) -> int:
        """How many exemplars, or classes of a model with classes alone, can be chosen; 0: unconditional."""
        return num_exemplars(self.model)

    @property
    def has_nearest(self) -> bool:
        return bool(self.shape.h_dim) and (self.data is not None or len(self.model.exemplars.images) > 0)

    @property
    def has_class_choice(self) -> bool:
        """Whether a class stands beside the instance."""
        return bool(self.shape.h_dim and self.shape.c_dim)

    def gallery(self) -> Rows:
        """At most MOST_SHOWN instances of the snapshot, with their images where it has any."""
        return from_exemplars(self.model, Choice(None, MOST_SHOWN))

    def instance(self, number: int) -> Rows:
        """One exemplar of the snapshot, or one class; the only row of an unconditional model."""
        if not 0 <= number < max(self.num_instances, 1):
            raise UserError(f"There is no instance {number}; expected 0 to {self.num_instances - 1}.")
        return from_exemplars(self.model, Choice([number]))

    def uploaded(self, path: Path) -> Rows:
        """An image of the user's as an instance.

        Raises:
            UserError: no image, of another type, too large, or damaged; says so to whoever looks at the page.
        """
        if self.no_uploads:
            raise UserError(self.no_uploads)
        check_upload(path)
        with self._networks:
            rows = from_images(self.model, [path], self.weights)
        return dataclasses.replace(rows, names=[path.stem[:LONGEST_STEM]])

    def samples(self, a: Rows, b: Rows, settings: Settings) -> Shown:
        """Seeds `seed`, `seed` + 1, ..., all of one condition: `mix` of the way from a to b."""
        first, last = self._ends(a, b, settings)
        seeds = range(settings.seed, settings.seed + settings.count)
        z = z_from_seeds(seeds, int(self.generator.z_dim)).split(1)
        places = [between(Place(row, first.condition), Place(row, last.condition), settings.mix, PATH) for row in z]
        name = first.names[0]
        if 0 < settings.mix < 1:
            name = f"{name}-to-{last.names[0]}-{settings.mix:.2f}"
        return Shown(self._render(places, settings), [f"{name}{'-' if name else ''}seed{seed:04d}" for seed in seeds])

    def strip(self, a: Rows, b: Rows, settings: Settings) -> Shown:
        """FRAMES steps from a to b with one seed; of an unconditional model from a seed to the next."""
        first, last = (self._with_class(rows, settings.label) for rows in (a, b))
        seeds = [settings.seed, settings.seed + (0 if self.num_instances else 1)]
        ends = [
            Place(z, rows.condition)
            for z, rows in zip(z_from_seeds(seeds, int(self.generator.z_dim)).split(1), (first, last), strict=True)
        ]
        steps = [step / (FRAMES - 1) for step in range(FRAMES)]
        places = [between(ends[0], ends[1], t, PATH) for t in steps]
        return Shown(self._render(places, settings), [f"step{number}" for number in range(FRAMES)])

    def nearest(self, a: Rows, b: Rows, settings: Settings) -> Shown:
        """Training images, or exemplars, nearest to the condition of the samples by the cosine of their features."""
        first, last = self._ends(a, b, settings)
        place = Place(torch.ones(1, 1), first.condition)
        h = between(place, Place(place.z, last.condition), settings.mix, PATH).condition.h
        if self.data is not None:
            ids = nearest(self.data.unit, h, self.num_nearest)[0]
            return Shown(self.data.dataset.images(ids), [self.data.dataset.names[i] for i in ids])
        stored = self.model.exemplars
        ids = nearest(self._exemplars, h, self.num_nearest)[0]
        return Shown(stored.images[ids.tolist()], [f"exemplar{i:05d}" for i in ids])

    @cached_property
    def _exemplars(self) -> UnitRows:
        return UnitRows(self.model.exemplars.condition.h.numpy())

    def _ends(self, a: Rows, b: Rows, settings: Settings) -> tuple[Rows, Rows]:
        """What the samples lie between; where that is one of the two, the other does not matter."""
        if settings.mix in (0, 1):
            one = self._with_class(b if settings.mix else a, settings.label)
            return one, one
        return self._with_class(a, settings.label), self._with_class(b, settings.label)

    def _with_class(self, rows: Rows, label: int | None) -> Rows:
        c_dim = self.shape.c_dim
        if label is None and rows.condition.c.shape[1] != c_dim:
            raise UserError(f"{rows.names[0]!r} brings no class: choose one under Class.")
        if label is not None and not (self.has_class_choice and 0 <= label < c_dim):
            raise UserError(f"There is no class {label} to choose.")
        return with_class(self.model, rows, label)

    def _render(self, places: Sequence[Place], settings: Settings) -> torch.Tensor:
        """uint8 [N, C, H, W], one image at a time: the bytes are those that generate.py writes."""
        renderer = Renderer(self.model, Flags(trunc=settings.trunc))
        images = []
        for place in places:
            with self._networks:
                images.append(renderer.from_latents(*place))
        return torch.cat(images)


def check_upload(path: Path) -> None:
    """Look at a file that somebody sent, before it is decoded as any other.

    Raises:
        UserError: no image, of another type, too large, or damaged.
    """
    *others, last = UPLOAD_FORMATS
    expected = f"Send {', '.join(others)} or {last} of at most {UPLOAD_BYTES >> 20} MB."
    try:
        if path.stat().st_size > UPLOAD_BYTES:
            raise UserError(f"{path.name} has {path.stat().st_size / 2**20:.0f} MB. {expected}")
        data = read_file(path)
        with PIL.Image.open(io.BytesIO(data), formats=list(UPLOAD_FORMATS)) as image:  # reads no more than the header
            width, height = image.size
        if width * height > UPLOAD_PIXELS:
            raise UserError(
                f"{path.name} has {width} x {height} pixels. Send one of at most {UPLOAD_PIXELS // 10**6} million."
            )
        decode_image(data)
    except PIL.Image.DecompressionBombError:
        raise UserError(
            f"{path.name} has far too many pixels. Send one of at most {UPLOAD_PIXELS // 10**6} million."
        ) from None
    except PIL.UnidentifiedImageError:
        raise UserError(f"{path.name} is not an image that can be read here. {expected}") from None
    except (ImageRefused, OSError, ValueError, SyntaxError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path.name} can't be used: {error}. {expected}") from None


def as_zip(shown: Shown) -> bytes:
    """A zip of PNG files of the images' names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNG is compressed already
        for image, name in zip(shown.images, shown.names, strict=True):
            archive.writestr(f"{name}.png", encode(image, "png"))
    return buffer.getvalue()


def as_sheet(shown: Shown, explaining: Sequence[Rows]) -> bytes:
    """One PNG of all images in a row, at its left the images of the instances."""
    left = torch.cat([rows.images for rows in explaining], dim=1) if explaining else None
    return encode_png(picture(sheet(shown.images.unsqueeze(0), left), sheet_scale(shown.images.shape[-1])))
