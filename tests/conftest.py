"""Tiny real inputs for the tests: zips of random or meaningful images, and scripts run as a user runs them."""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner, Result

from metrics import lpips
from torch_utils import custom_ops
from training.randomness import seed_everything
from training.system import DataShape, System, SystemKind

torch.set_num_threads(1)  # two test processes share two cores


@pytest.fixture(autouse=True)
def _reference_ops() -> None:
    """As in a fresh process: a script that another test ran may have chosen other ops."""
    custom_ops.set_mode("ref")


def write_zip(
    path: Path, images: Sequence[np.ndarray], labels: Sequence[int] | None = None, names: Sequence[str] | None = None
) -> Path:
    """A StyleGAN zip of uint8 [H, W] or [H, W, 3] images."""
    names = names or [f"00000/img{i:08d}.png" for i in range(len(images))]
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in zip(names, images, strict=True):
            buffer = io.BytesIO()
            PIL.Image.fromarray(image).save(buffer, format="png")
            archive.writestr(name, buffer.getvalue())
        table = None if labels is None else [[name, int(label)] for name, label in zip(names, labels, strict=True)]
        archive.writestr("dataset.json", json.dumps({"labels": table}))
    return path


def pattern_images(count: int, side: int = 8, seed: int = 0) -> tuple[list[np.ndarray], list[int]]:
    """Grey images of 4 classes that differ in which quarter is bright, with noise; and their classes."""
    rng = np.random.default_rng(seed)
    labels = [i % 4 for i in range(count)]
    images = []
    for label in labels:
        image = rng.integers(0, 60, (side, side))
        y, x = divmod(label, 2)
        image[y * side // 2 : (y + 1) * side // 2, x * side // 2 : (x + 1) * side // 2] += 180
        images.append(image.astype(np.uint8))
    return images, labels


@pytest.fixture
def patterns_zip(tmp_path: Path) -> Path:
    """40 grey 8x8 images of 4 classes."""
    return write_zip(tmp_path / "patterns.zip", *pattern_images(40))


def invoke(command: click.Command, *args: str | Path) -> Result:
    """Run a script in this process; bugs keep their traceback."""
    result = CliRunner().invoke(command, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


Refused = Callable[..., str]


@pytest.fixture
def refused() -> Refused:
    """Run a script that must refuse its input: exit code 2 and exactly one line of error, which is returned."""

    def run(command: click.Command, *args: str | Path) -> str:
        result = invoke(command, *args)
        assert result.exit_code == 2, result.output
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("Error: ")
        return lines[0]

    return run


# Networks of a few thousand parameters: a step takes milliseconds.
TINY_MODEL = ["--z-dim=8", "--w-dim=8", "--map-layers=2", "--channel-base=64", "--channel-max=8"]
TINY_RUN = [*TINY_MODEL, "--batch=8", "--tick=0.032", "--snap=1", "--device=cpu", "--cfg=tiny"]

TINY_BIGGAN = ["--cfg=biggan-tiny", "--z-dim=8", "--ch=2", "--shared-dim=4", "--shared-dim-feat=4", "--attention=0"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A snapshot of StyleGAN2 by each --cond, and `biggan` by instances, whose images differ; and their `data`.

    After one step all images would be nearly alike, so the weights of the average generator are shaken.
    """
    import train

    folder = tmp_path_factory.mktemp("trained")
    data = write_zip(folder / "patterns.zip", *pattern_images(40))
    snapshots = {"data": data}
    for name in ("none", "class", "instance", "instance+class", "biggan"):
        model = [*TINY_RUN[len(TINY_MODEL) :], *TINY_BIGGAN] if name == "biggan" else TINY_RUN
        flags = [*model, f"--cond={'instance' if name == 'biggan' else name}"]
        flags += [f"--data={data}", f"--outdir={folder / name}", "--minutes=0.0001"]
        flags += [] if name in ("none", "class") else ["--k=4"]
        assert invoke(train.main, *flags).exit_code == 0
        (snapshots[name],) = folder.glob(f"{name}/*/network-snapshot-000000.pt")
        shake(snapshots[name])
    return snapshots


def shake(snapshot: Path) -> None:
    """Add noise to the weights of the generator that is used, the same every time; its images keep their range."""
    content = torch.load(snapshot, weights_only=True)
    random = torch.Generator().manual_seed(0)
    for name, tensor in content["networks"]["G_ema"].items():
        if name.endswith((".weight", ".noise_strength")):
            tensor += 0.5 * torch.randn(tensor.shape, generator=random)
            tensor *= 0.3 if "torgb.weight" in name else 1
    torch.save(content, snapshot)


@pytest.fixture
def lpips_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A narrow LPIPS with random weights, in a file."""
    narrow = tuple(tuple(width // 32 for width in widths) for widths in lpips.BLOCKS)
    monkeypatch.setattr(lpips, "BLOCKS", narrow)
    draw, tensors, width_in, number = torch.Generator().manual_seed(0), {}, 3, 0
    for level, widths in enumerate(narrow):
        for width in widths:
            tensors[f"features.{number}.weight"] = torch.randn(width, width_in, 3, 3, generator=draw) / 4
            tensors[f"features.{number}.bias"] = torch.randn(width, generator=draw)
            width_in, number = width, number + 2
        number += 1
        tensors[f"lin{level}.model.1.weight"] = torch.rand(1, width_in, 1, 1, generator=draw)
    torch.save(tensors, tmp_path / "lpips.pth")
    return tmp_path / "lpips.pth"


def build_small(kind: SystemKind, options: Any, shape: DataShape, batch: int = 8) -> System:
    """A system with the weights of seed 0, its options checked."""
    kind.check(options, shape.img_resolution, batch)
    seed_everything(0)
    return kind.build(options, {name: make(options, shape) for name, make in kind.networks.items()})
