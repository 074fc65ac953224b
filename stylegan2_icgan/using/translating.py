"""What translate.py does: images of a folder or zip through a translator, and how close they come to their targets."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from metrics.instance_metrics import Mean
from metrics.lpips import Lpips
from metrics.paired import Distance, check_size, distances
from stylegan2_icgan.evaluation.images import decoded
from stylegan2_icgan.models import Model
from stylegan2_icgan.using.image_files import save_image, save_sheet, writing_to
from torch_utils.command_line import UserError
from torch_utils.files import atomic_write, sha256
from training.image_source import ImageFile, first_of, is_inside, open_source, shown
from training.translation import translate_images

BATCH = 16  # images in memory
SHEET_ROWS, SHEET_COLUMNS = 8, 4  # of more images the first are shown, each with its source and target
SHEET, RECORD = "sheet.png", "metrics.json"


def named_files(path: Path, flag: str) -> dict[str, ImageFile]:
    """The images of a folder or zip by their names without ending, which are those of the translated images.

    Raises:
        UserError: none there, two of one name, or one that would be written outside of its folder or over the sheet.
    """
    try:
        source = open_source(path)
    except UserError as error:
        raise UserError(str(error).replace("--source", flag, 1)) from None
    files: dict[str, ImageFile] = {}
    for file in source.files:
        stem = str(PurePosixPath(file.name).with_suffix(""))
        if stem in files:
            raise UserError(
                f"{flag}={path}: {shown(files[stem].name)} and {shown(file.name)} differ in their endings only; "
                "expected one image of a name"
            )
        if not is_inside(file.name) or f"{stem}.png" == SHEET:
            raise UserError(f"{flag}={path}: an image can't be called {shown(file.name)} here; rename it")
        files[stem] = file
    return files


@dataclass(frozen=True)
class Translation:
    """What is translated, which way, and what it is compared with.

    Args:
        files: name -> image.
        targets: the same names -> what the translated image should be; None: that isn't known.
        names: metrics to take against the targets.
    """

    model: Model
    direction: str
    source: Path
    files: dict[str, ImageFile]
    target: Path | None = None
    targets: dict[str, ImageFile] | None = None
    names: Sequence[str] = ()
    lpips: Lpips | None = None

    def check(self, outdir: Path) -> None:
        """
        Raises:
            UserError: images without a target, images that would be overwritten, or too small for a metric.
        """
        for flag, path in (("--source", self.source), ("--target", self.target)):
            if path is not None and path.resolve() == outdir.resolve():
                raise UserError(f"--outdir={outdir} is {flag}, whose images would be overwritten; name another folder")
        lonely = [] if self.targets is None else [name for name in self.files if name not in self.targets]
        if lonely:
            raise UserError(
                f"--target={self.target} has no image of the name of {len(lonely):,} in --source={self.source}: "
                f"{first_of(lonely)}; expected one for each"
            )
        for name in self.names:
            check_size(name, self.model.recipe.shape.img_resolution)

    def write(self, outdir: Path) -> dict[str, Mean]:
        """Write a PNG for each image, one by one, so that its bytes depend on nothing else; then the sheet.

        Returns:
            metric -> its mean over the images; with targets these are written, too.
        """
        generator, measures = self.model.generator, distances(self.names, self.lpips)
        values: dict[str, list[torch.Tensor]] = {name: [] for name in measures}
        shown_images: list[torch.Tensor] = []
        names = list(self.files)
        with writing_to(outdir):
            for start in range(0, len(names), BATCH):
                some = names[start : start + BATCH]
                images = self._load([self.files[name] for name in some], f"--source={self.source}")
                made = translate_images(generator, images, self.direction, batch=1)
                columns = [images, made]
                if self.targets is not None:
                    columns.append(self._load([self.targets[name] for name in some], f"--target={self.target}"))
                    self._measure(measures, made, columns[-1], values)
                for name, image in zip(some, made, strict=True):
                    path = outdir / f"{name}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_image((path, image))
                if len(shown_images) * BATCH < SHEET_ROWS * SHEET_COLUMNS:
                    shown_images.append(torch.stack(columns, dim=1))
            save_sheet(_table(torch.cat(shown_images)), None, outdir / SHEET)
            means = {name: Mean.of(torch.cat(parts)) for name, parts in values.items()}
            if self.targets is not None:
                with atomic_write(outdir / RECORD) as file:
                    file.write((json.dumps(self._record(means), indent=2) + "\n").encode())
        return means

    def _load(self, files: Sequence[ImageFile], where: str) -> torch.Tensor:
        """uint8 [N, C, R, R]; other sizes are centre-cropped and resized."""
        shape = self.model.recipe.shape
        return decoded(files, shape.img_resolution, shape.img_channels, where, torch.arange(len(files)).numpy())

    def _measure(
        self,
        measures: dict[str, Distance],
        made: torch.Tensor,
        targets: torch.Tensor,
        values: dict[str, list[torch.Tensor]],
    ) -> None:
        for name, distance in measures.items():
            values[name].append(distance(made, targets).double().cpu())

    def _record(self, means: dict[str, Mean]) -> dict[str, Any]:
        return {
            "network": self.model.path.name,
            "network_sha256": sha256(self.model.path),
            "kimg": self.model.snapshot.cur_nimg / 1000,
            "direction": self.direction,
            "source": str(self.source),
            "target": str(self.target),
            "num": len(self.files),
            "results": {name: _json_number(mean.value) for name, mean in means.items()},
            "standard_error": {name: _json_number(mean.error) for name, mean in means.items()},
            **({"lpips": self.lpips.description} if self.lpips is not None else {}),
        }


def _table(images: torch.Tensor) -> torch.Tensor:
    """[N, few, C, H, W] -> [rows, columns * few, C, H, W], white where there are none."""
    images = images[: SHEET_ROWS * SHEET_COLUMNS]
    columns = min(len(images), SHEET_COLUMNS)
    missing = -len(images) % columns
    images = torch.cat([images, torch.full_like(images[:1], 255).expand(missing, *images.shape[1:])])
    return images.unflatten(0, (-1, columns)).flatten(1, 2)


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they become words."""
    return value if math.isfinite(value) else str(value)
