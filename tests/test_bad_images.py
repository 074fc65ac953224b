"""Images that turn bad in the midst of a run: named, replaced, counted, and too many end it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import TINY_RUN, Refused, invoke, pattern_images

import train
from torch_utils.command_line import UserError
from training.dataset import ImageFolderDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of 12 files."""
    data = tmp_path / "data"
    data.mkdir()
    for i, image in enumerate(pattern_images(12)[0]):
        PIL.Image.fromarray(image).save(data / f"{i:02d}.png")
    return data


def test_the_next_good_image_stands_in_up_to_a_limit(folder: Path) -> None:
    dataset = ImageFolderDataset(folder)
    expected = dataset.decode_images(range(12))
    for name in ("03.png", "04.png"):
        (folder / name).unlink()
    (folder / "11.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"03\.png"):
        dataset.decode_images([3])
    dataset.tolerate(3)
    got = dataset.decode_images([2, 3, 4, 11, 3])
    assert np.array_equal(got, expected[[2, 5, 5, 0, 5]])
    assert dataset.bad_images() == ["03.png", "04.png", "11.png"]
    (folder / "07.png").unlink()
    with pytest.raises(UserError, match=r"07\.png.*more than --bad-images=3 are bad by now"):
        dataset.decode_images([7])


@pytest.fixture
def losing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let files vanish when a run is about to begin."""
    tolerate = ImageFolderDataset.tolerate

    def lose(*names: str) -> None:
        def begin(self: ImageFolderDataset, limit: int) -> None:
            tolerate(self, limit)
            for name in names:
                (folder / name).unlink()

        monkeypatch.setattr(ImageFolderDataset, "tolerate", begin)

    return lose


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_names_and_counts_them(
    folder: Path, tmp_path: Path, losing: Callable[..., None], workers: int
) -> None:
    losing("01.png", "08.png")
    flags = [*TINY_RUN, f"--data={folder}", "--cache=none", f"--workers={workers}", f"--outdir={tmp_path / 'runs'}"]
    result = invoke(train.main, *flags, "--kimg=0.096")
    assert result.exit_code == 0, result.output
    assert result.output.count("01.png can't be read any more; another image stands in for it") == 1
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert lines[-1]["Data/bad_images"]["mean"] == 2


def test_too_many_end_it_with_their_name(
    folder: Path, tmp_path: Path, refused: Refused, losing: Callable[..., None]
) -> None:
    losing("05.png")
    flags = [*TINY_RUN, f"--data={folder}", "--cache=none", f"--outdir={tmp_path / 'runs'}", "--kimg=0.096"]
    line = refused(train.main, *flags, "--bad-images=0")
    assert "05.png" in line
    assert "more than --bad-images=0 are bad by now" in line
