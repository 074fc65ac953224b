"""Images that turn bad in the midst of a run: named, replaced, counted, and too many end it."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import TINY_RUN, Refused, invoke, pattern_images

import train
from torch_utils.command_line import UserError
from training import bad_images
from training.bad_images import FILE, BadImages, remembered
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
    dataset.fingerprint()  # as train.py asks for it, while they are all there
    for name in ("03.png", "04.png"):
        (folder / name).unlink()
    (folder / "11.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"03\.png"):
        dataset.decode_images([3])
    dataset.tolerate(3)
    got = dataset.decode_images([2, 3, 4, 11, 3])
    assert np.array_equal(got, expected[[2, 5, 5, 0, 5]])
    assert list(dataset.bad_images()) == ["03.png", "04.png", "11.png"]
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


def damage(data: Path, names: list[str]) -> None:
    """Spoil files of a zip where they lie, or remove them from a folder."""
    if data.is_dir():
        for name in names:
            (data / name).unlink()
        return
    content = bytearray(data.read_bytes())
    for name in names:
        place = content.index(name.encode()) + len(name) + 60  # behind its local header
        content[place] ^= 0xFF
    data.write_bytes(content)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_run_that_has_lost_images_can_be_continued(
    folder: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    data, lost = folder, ["00.png", "03.png", "07.png"]
    if packed:
        data = tmp_path / "data.zip"
        with zipfile.ZipFile(data, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)
    fingerprint, tolerate = ImageFolderDataset(data).fingerprint(), ImageFolderDataset.tolerate

    def begin(self: ImageFolderDataset, limit: int) -> None:
        tolerate(self, limit)
        damage(data, lost)

    outdir, cond = f"--outdir={tmp_path / 'runs'}", ["--cond=instance", "--k=3"]
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolderDataset, "tolerate", begin)
        flags = [*TINY_RUN, f"--data={data}", "--cache=none", outdir, *cond]
        assert invoke(train.main, *flags, "--kimg=0.096").exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert sorted(remembered(run)) == lost
    for kimg, cache in ((0.128, "none"), (0.16, "ram")):
        result = invoke(train.main, f"--resume={run}", outdir, f"--kimg={kimg}", f"--cache={cache}")
        assert result.exit_code == 0, result.output
    assert ImageFolderDataset(data, lost=remembered(run)).fingerprint() == fingerprint
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["Data/bad_images"]["mean"] for line in lines][2:] == [3, 3, 3]
    assert "more than --bad-images=2" in refused(train.main, f"--resume={run}", outdir, "--kimg=0.2", "--bad-images=2")
    if not packed:
        (folder / "05.png").unlink()  # of which the run knows nothing
        assert "are not the 12 that" in refused(train.main, f"--resume={run}", outdir, "--kimg=0.2")
        return
    (run / FILE).write_text("[")
    assert f"{FILE} can't be read" in refused(train.main, f"--resume={run}", outdir, "--kimg=0.2")


def test_every_process_knows_what_the_others_could_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = BadImages(10, limit=3, before=[2])
    bad.note(4, UserError("x"))
    monkeypatch.setattr(bad_images, "gather", lambda mine, brisk: [mine, [2, 7]])
    bad.merge()
    assert bad.list() == [2, 4, 7]
    dataset = ImageFolderDataset(folder)
    dataset.tolerate(3)
    assert dataset.bad_images() == {name: dataset.checksum(int(name[:2])) for name in ("02.png", "07.png")}
    monkeypatch.setattr(bad_images, "gather", lambda mine, brisk: [mine, [9]])
    with pytest.raises(UserError, match=r"4 images can't be read any more, of all processes: more than --bad-images=3"):
        bad.merge()


def test_too_many_end_it_with_their_name(
    folder: Path, tmp_path: Path, refused: Refused, losing: Callable[..., None]
) -> None:
    losing("05.png")
    flags = [*TINY_RUN, f"--data={folder}", "--cache=none", f"--outdir={tmp_path / 'runs'}", "--kimg=0.096"]
    line = refused(train.main, *flags, "--bad-images=0")
    assert "05.png" in line
    assert "more than --bad-images=0 are bad by now" in line
