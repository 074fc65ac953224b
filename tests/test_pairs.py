"""Pairs of images: aligned by name, of one size, with or without colour."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import invoke, pattern_images, write_zip

import dataset_tool
from benchmarks.pairs import main as make_pairs
from benchmarks.pairs import sobel
from torch_utils.command_line import UserError
from training.dataset import Draws, ImageFolderDataset
from training.pairs import PairedSource, align, open_partner
from training.randomness import hashed


def write_halves(tmp_path: Path, count: int = 20) -> tuple[Path, Path]:
    """Zips of grey 8x8 patterns, and of the same inverted."""
    images, _ = pattern_images(count)
    names = [f"{number:03d}.png" for number in range(count)]
    inverted = [255 - image for image in images]
    return write_zip(tmp_path / "A.zip", images, names=names), write_zip(tmp_path / "B.zip", inverted, names=names)


def source_of(a: Path, b: Path, **options: Any) -> PairedSource:
    first = ImageFolderDataset(a)
    second = open_partner(str(b), first)
    return PairedSource(first, second, align(first, second), **options)


def draws_of(count: int) -> Draws:
    index = np.arange(count)
    return Draws(index, hashed(0, index))


def test_pairs_are_aligned_by_name_whatever_their_endings(tmp_path: Path) -> None:
    images, _ = pattern_images(6)
    a = write_zip(tmp_path / "A.zip", images, names=[f"x/{name}.png" for name in "fbcdea"])
    (tmp_path / "B" / "x").mkdir(parents=True)
    for image, name in zip(images, ("f.png", "b.bmp", "c.png", "d.png", "e.png", "a.bmp"), strict=True):
        PIL.Image.fromarray(255 - image).save(tmp_path / "B" / "x" / name)
    sample = source_of(a, tmp_path / "B")[draws_of(6)]
    grey, other = sample.image.chunk(2, dim=1)
    assert sample.image.shape == (6, 2, 8, 8)
    assert torch.equal(grey, 255 - other)
    assert (sample.c.shape, sample.h.shape, sample.index.tolist()) == ((6, 0), (6, 0), list(range(6)))


def test_names_from_before_the_conversion_count(tmp_path: Path) -> None:
    """dataset_tool.py numbers images; here one of A was refused, so that the numbers do not agree."""
    images, _ = pattern_images(4)
    for folder, change in (("a", lambda image: image), ("b", lambda image: 255 - image)):
        (tmp_path / folder).mkdir()
        for name, image in zip("wxyz", images, strict=True):
            PIL.Image.fromarray(change(image)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "a" / "w.png").write_bytes(b"damaged")
    for folder in "ab":
        invoke(dataset_tool.main, "convert", f"--source={tmp_path / folder}", f"--dest={tmp_path / folder}.zip")
    first, second = ImageFolderDataset(tmp_path / "a.zip"), ImageFolderDataset(tmp_path / "b.zip")
    with pytest.raises(UserError, match=r"1 images of b.zip have no partner of their name in a.zip: w;"):
        align(first, second)
    (tmp_path / "b" / "w.png").unlink()
    (tmp_path / "b" / "x.png").rename(tmp_path / "b" / "x.jpg")  # sorted the same, called otherwise
    invoke(dataset_tool.main, "convert", f"--source={tmp_path / 'b'}", f"--dest={tmp_path / 'b.zip'}", "--overwrite")
    images_a, images_b = source_of(tmp_path / "a.zip", tmp_path / "b.zip")[draws_of(3)].image.unbind(1)
    assert torch.equal(images_a, 255 - images_b)


def test_numbers_count_where_names_have_nothing_in_common(tmp_path: Path) -> None:
    images, _ = pattern_images(3)
    paths = []
    for folder, names in (("a", ["photo1", "photo2", "photo3"]), ("b", ["sketch1", "sketch2", "sketch3"])):
        (tmp_path / folder).mkdir()
        for name, image in zip(names, images, strict=True):
            PIL.Image.fromarray(image).save(tmp_path / folder / f"{name}.png")
        paths.append(tmp_path / f"{folder}.zip")
        invoke(dataset_tool.main, "convert", f"--source={tmp_path / folder}", f"--dest={paths[-1]}")
    said: list[str] = []
    assert align(*map(ImageFolderDataset, paths), said.append).tolist() == [0, 1, 2]
    assert "their numbers in the data sets count" in said[0]


def test_a_subset_keeps_its_partners(tmp_path: Path) -> None:
    a, b = write_halves(tmp_path)
    first = ImageFolderDataset(a, max_images=7, subset_seed=3)
    second = open_partner(str(b), first)
    images_a, images_b = PairedSource(first, second, align(first, second))[draws_of(7)].image.unbind(1)
    assert torch.equal(images_a, 255 - images_b)


def test_grey_and_colour_make_pairs_and_are_flipped_together(tmp_path: Path) -> None:
    images, _ = pattern_images(40)
    names = [f"{number:03d}.png" for number in range(40)]
    a = write_zip(tmp_path / "A.zip", images, names=names)
    colour = [np.stack([image, 255 - image, image], axis=2) for image in images]
    b = write_zip(tmp_path / "B.zip", colour, names=names)
    plain, flipped = source_of(a, b)[draws_of(40)], source_of(a, b, mirror=True)[draws_of(40)]
    assert source_of(a, b).num_channels == 3
    assert plain.image.shape == (40, 6, 8, 8)
    assert torch.equal(plain.image[:, 0], plain.image[:, 2])
    assert torch.equal(plain.image[:, 1], 255 - plain.image[:, 4])
    assert torch.equal(flipped.image[:, 1], 255 - flipped.image[:, 4])
    is_flipped = [torch.equal(y, x.flip(2)) for x, y in zip(plain.image, flipped.image, strict=True)]
    assert all(f or torch.equal(x, y) for f, x, y in zip(is_flipped, plain.image, flipped.image, strict=True))
    assert 8 < sum(is_flipped) < 32


def test_benchmark_makes_pairs_of_edges_and_images(tmp_path: Path) -> None:
    step = torch.zeros(1, 1, 5, 6, dtype=torch.uint8)
    step[..., 3:] = 100  # |gradient| of Sobel's filters is 4 * 100 beside the step, 0 elsewhere
    assert sobel(step)[0, 0, 2].tolist() == [0, 0, 100, 100, 0, 0]
    assert invoke(make_pairs, f"--outdir={tmp_path}").exit_code == 0
    sizes = {name: len(ImageFolderDataset(tmp_path / f"{name}.zip")) for name in ("A", "B", "A-test", "B-test")}
    assert sizes == {"A": 1438, "B": 1438, "A-test": 359, "B-test": 359}
    edges, digits = source_of(tmp_path / "A-test.zip", tmp_path / "B-test.zip")[draws_of(9)].image.chunk(2, dim=1)
    assert torch.equal(edges, sobel(digits))
