"""The Python interface: `import stylegan2_icgan as icgan`.

    G = icgan.load("network-snapshot.pt")
    images = G.sample(h=G.exemplars.condition.h[:4], seeds=range(4), truncation_psi=0.7)

What a user gets wrong is a `UserError` (a `ValueError`) of one line.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan2_icgan.exporting.folder import read_folder
from stylegan2_icgan.exporting.hub import HUB_ID, fetch_folder
from stylegan2_icgan.extractors.extractor import Extractor, normalise
from stylegan2_icgan.extractors.networks import NetworkExtractor
from stylegan2_icgan.features import canonical_name, check_extractor_name
from stylegan2_icgan.models import Model, load_model
from stylegan2_icgan.systems import SYSTEMS
from torch_utils.command_line import UserError
from torch_utils.images import load_image
from torch_utils.misc import pick_device
from training.condition import Condition, Exemplars
from training.sampling import sample_images, z_from_seeds

Rows = torch.Tensor | np.ndarray[Any, Any] | Sequence[Sequence[float]]
Images = torch.Tensor | np.ndarray[Any, Any]
ARGUMENTS = {  # flags in errors -> what the arguments are called here
    "--network=": "",
    "--device=": "device=",
    "--instance-images: ": "",
    "--extractor-weights=": "weights=",
    "--extractor=": "extractor=",
}


class Generator:
    """A trained generator, ready to use; `load` makes one.

    Attributes:
        z_dim: width of the noise.
        c_dim: number of classes; 0: none.
        h_dim: width of the instance features; 0: none.
        img_resolution: side of the images in pixels.
        img_channels: 1 or 3.
        exemplars: conditions stored beside the weights: `exemplars.condition.h` float32 [N, h_dim], `.c` float32
            [N, c_dim], `exemplars.images` uint8 [N, C, H, W] (or no rows), `exemplars.names`.
        network: the network itself, float32, in eval mode, without gradients.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        shape = model.recipe.shape
        self.c_dim, self.h_dim = shape.c_dim, shape.h_dim
        self.img_resolution, self.img_channels = shape.img_resolution, shape.img_channels
        self.network = model.generator
        self.z_dim = int(self.network.z_dim)  # type: ignore[arg-type]
        self.exemplars: Exemplars = model.exemplars

    def __repr__(self) -> str:
        shape = f"{self.img_channels} x {self.img_resolution} x {self.img_resolution}"
        return f"Generator({self.model.path.name}: {shape}, z {self.z_dim}, c {self.c_dim}, h {self.h_dim})"

    def sample(
        self,
        h: Rows | None = None,
        c: Rows | int | Sequence[int] | None = None,
        seeds: Sequence[int] = (0,),
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
        batch: int = 32,
    ) -> torch.Tensor:
        """Images, one for each seed and condition.

        h, c and seeds have N rows, or one, which is then used for all: one feature with eight seeds gives eight images,
        eight features with one seed do, and eight with eight are taken in pairs.

        Args:
            h: instance features, float [N, h_dim] or [h_dim]; brought to unit length.
            c: classes: numbers 0 to c_dim - 1, one or [N]; or labels, float [N, c_dim].
            seeds: of the noise z; the same seed gives the same z on every machine.
            truncation_psi: 1: as trained; towards 0 images become more alike and usually cleaner.
            truncation_cutoff: truncate only the first so many styles; None: all.
            noise_mode: 'const'; 'none'; or 'random', by torch's own random numbers.
            batch: images at a time. A last bit of a sum may depend on it, and so may a pixel by 1.

        Returns:
            uint8 [N, img_channels, img_resolution, img_resolution], 0 to 255, on the CPU.

        Raises:
            UserError: a condition is missing, too much, of another width, or of another number of rows.
        """
        parts = {"h": self._features(h), "c": self._labels(c)}
        z = z_from_seeds([int(seed) for seed in seeds], self.z_dim) if len(seeds) else torch.zeros(0, self.z_dim)
        counts = {"seeds": len(z)} | {name: len(part) for name, part in parts.items() if part is not None}
        num = max(counts.values())
        wrong = next((name for name, count in counts.items() if count not in (1, num)), None)
        if wrong is not None or 0 in counts.values():
            raise UserError(f"sample: {counts} rows given; expected the same number of each, or one")
        none = torch.zeros(1, 0)
        rows = {name: (none if part is None else part).expand(num, -1) for name, part in parts.items()}
        return sample_images(
            self.network,
            z.expand(num, -1),
            Condition(rows["c"], rows["h"]),
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            noise_mode=noise_mode,
            batch=batch,
        )

    def _features(self, h: Rows | None) -> torch.Tensor | None:
        """float32 [N, h_dim], rows of unit length; None where there is none and none is wanted."""
        if h is None or not self.h_dim:
            if (h is None) != (not self.h_dim):
                wanted = f"takes instance features [N, {self.h_dim}]" if self.h_dim else "takes no instance features"
                raise UserError(f"sample: h is {'missing' if h is None else 'given'}; this model {wanted}")
            return None
        features = torch.as_tensor(h, dtype=torch.float32).cpu()
        features = features[None] if features.ndim == 1 else features
        if features.ndim != 2 or features.shape[1] != self.h_dim:
            raise UserError(f"sample: h is {list(features.shape)}; this model takes features [N, {self.h_dim}]")
        lengths = features.norm(dim=1)
        if not bool(((lengths > 0) & lengths.isfinite()).all()):
            raise UserError("sample: h has a row without direction (zero, or not finite); a feature needs one")
        return normalise(features)

    def _labels(self, c: Rows | int | Sequence[int] | None) -> torch.Tensor | None:
        """float32 [N, c_dim]; None where there is none and none is wanted."""
        if c is None or not self.c_dim:
            if (c is None) != (not self.c_dim):
                wanted = f"takes classes 0 to {self.c_dim - 1}" if self.c_dim else "takes no classes"
                raise UserError(f"sample: c is {'missing' if c is None else 'given'}; this model {wanted}")
            return None
        labels = torch.as_tensor(c).cpu()
        if labels.ndim < 2 and not labels.is_floating_point():
            labels = labels.reshape(-1).long()
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.c_dim:
                raise UserError(f"sample: c has {labels.tolist()[:8]}; this model has classes 0 to {self.c_dim - 1}")
            return torch.nn.functional.one_hot(labels, self.c_dim).float()
        if labels.ndim != 2 or labels.shape[1] != self.c_dim:
            raise UserError(f"sample: c is {list(labels.shape)}; expected classes [N], or labels [N, {self.c_dim}]")
        return labels.float()


def load(path_or_hub_id: str | Path, device: str = "auto") -> Generator:
    """A trained generator.

    Args:
        path_or_hub_id: a snapshot (.pt) of train.py or of `python -m stylegan2_icgan.convert`, a folder of export.py,
            or such a folder's id on the Hugging Face hub: 'user/name'.
        device: 'auto', 'cpu', 'cuda' or 'mps'.

    Raises:
        UserError: not found, damaged, from a newer version, or the hub can't be reached (said within seconds).
    """
    path = Path(path_or_hub_id)
    with _as_arguments():
        where = pick_device(device)
        if path.is_dir():
            return Generator(_from_folder(path, path, where))
        if not path.exists() and path.suffix != ".pt" and HUB_ID.fullmatch(str(path_or_hub_id)):
            return Generator(_from_folder(fetch_folder(str(path_or_hub_id)), path, where))
        return Generator(load_model(path, where))


def _from_folder(folder: Path, named: Path, device: torch.device) -> Model:
    snapshot = read_folder(folder)
    if snapshot.recipe.system not in SYSTEMS:
        raise UserError(f"{named} is of system {snapshot.recipe.system!r}; this version has {', '.join(SYSTEMS)}")
    return Model(named, snapshot, device)


def features(
    images: Images | Sequence[str | Path],
    extractor: str | Generator,
    weights: str | Path | None = None,
    device: str = "auto",
) -> torch.Tensor:
    """Instance features of images.

    Args:
        images: paths of image files; or pixels, uint8 [N, C, H, W], 0 to 255, C 1 or 3.
        extractor: a generator, whose own extractor is taken and whose data's preparation paths go through; or a network
            by name: 'dinov2', 'clip', 'resnet50', 'swav', 'resnet50-lt', or 'timm:NAME'.
        weights: a local file of the extractor's weights; None: published ones are taken from this machine's caches, or
            fetched.
        device: where a network that is named runs; a generator's runs beside it.

    Returns:
        float32 [N, h_dim] on the CPU, rows of unit length.

    Raises:
        UserError: a file that is no image, pixels of another type or shape, an unknown extractor, or weights that are
            not to be had.
    """
    file = None if weights is None else Path(weights)
    with _as_arguments():
        if isinstance(images, torch.Tensor | np.ndarray):
            return _of_pixels(torch.as_tensor(images), _extractor(extractor, file, device))
        paths = [Path(path) for path in images]
        if isinstance(extractor, Generator) and paths:
            return extractor.model.features(paths, file)[0]
        made = _extractor(extractor, file, device)
        rows = [_of_pixels(torch.from_numpy(load_image(path))[None], made) for path in paths]
        return torch.cat(rows) if rows else torch.zeros(0, made.h_dim)


def _extractor(extractor: str | Generator, weights: Path | None, device: str) -> Extractor:
    if isinstance(extractor, Generator):
        if not extractor.h_dim or not extractor.exemplars.extractor:
            raise UserError("features: this model is not conditioned on instances; name an extractor")
        return extractor.model.extractor(weights)
    check_extractor_name(extractor)
    if extractor in ("pca", "file"):
        raise UserError(f"features: {extractor} belongs to a model or data set; give the generator as the extractor")
    return NetworkExtractor.make(canonical_name(extractor), weights, pick_device(device))


def _of_pixels(images: torch.Tensor, extractor: Extractor) -> torch.Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise UserError(f"features: images are {images.dtype} {list(images.shape)}; expected uint8 [N, 1 or 3, H, W]")
    if not len(images):
        return torch.zeros(0, extractor.h_dim)
    starts = range(0, len(images), extractor.batch)
    return torch.cat([extractor(images[start : start + extractor.batch]).cpu() for start in starts])


@contextmanager
def _as_arguments() -> Iterator[None]:
    """Errors of the scripts' parts name flags: let them name the arguments here."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for flag, argument in ARGUMENTS.items():
            message = message.replace(flag, argument)
        raise UserError(message) from None
