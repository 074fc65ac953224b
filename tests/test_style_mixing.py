from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import Refused, invoke

import generate
import style_mixing
from stylegan2_icgan.models import load_model
from stylegan2_icgan.using.mixing import parse_styles
from training.sampling import render_styles, z_from_seeds


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def cell(grid: np.ndarray, row: int, column: int) -> np.ndarray:
    """An 8x8 image of a sheet that is enlarged eight times, with a line of white below each row."""
    return grid[72 * row : 72 * row + 64 : 8, 64 * column : 64 * column + 64 : 8]


def test_margins_are_the_images_of_the_seeds_and_mixes_their_styles(trained: dict[str, Path], tmp_path: Path) -> None:
    network = f"--network={trained['none']}"
    flags = [network, "--rows=0,1", "--cols=7-9", "--col-styles=1-2", f"--outdir={tmp_path / 'mix'}"]
    result = invoke(style_mixing.main, *flags)
    assert result.exit_code == 0, result.output
    assert invoke(generate.main, network, "--seeds=0,1,7-9", f"--outdir={tmp_path / 'own'}").exit_code == 0
    grid = pixels(tmp_path / "mix" / "grid.png")
    assert grid.shape == (72 * 3 - 8, 64 * 4)
    assert (cell(grid, 0, 0) == 255).all()
    for place, seed in [((1, 0), 0), ((2, 0), 1), ((0, 1), 7), ((0, 2), 8), ((0, 3), 9)]:
        name = f"seed{seed:04d}.png"
        assert (tmp_path / "mix" / name).read_bytes() == (tmp_path / "own" / name).read_bytes()
        assert np.array_equal(cell(grid, *place), pixels(tmp_path / "own" / name))

    generator = load_model(trained["none"], torch.device("cpu")).generator
    with torch.no_grad():
        row, col = (generator.mapping(z_from_seeds([seed], generator.z_dim)) for seed in (1, 8))
    mixed = torch.stack([row[:, 0], col[:, 1], col[:, 2], row[:, 3]], dim=1)
    expected = render_styles(generator, mixed)[0, 0].numpy()
    assert np.array_equal(pixels(tmp_path / "mix" / "seed0001+seed0008.png"), expected)
    assert np.array_equal(cell(grid, 2, 2), expected)
    assert not np.array_equal(expected, pixels(tmp_path / "own" / "seed0001.png"))


def test_all_styles_of_a_column_are_the_column(trained: dict[str, Path], tmp_path: Path) -> None:
    """Each side may have instances of its own; stored noise does not depend on them."""
    flags = [f"--network={trained['instance']}", "--rows=0", "--row-instances=3,30", "--cols=1", "--col-instances=12"]
    assert invoke(style_mixing.main, *flags, "--col-styles=0-3", f"--outdir={tmp_path}").exit_code == 0
    mix = "exemplar00030-seed0000+exemplar00012-seed0001.png"
    assert (tmp_path / mix).read_bytes() == (tmp_path / "exemplar00012-seed0001.png").read_bytes()
    assert (tmp_path / mix).read_bytes() != (tmp_path / "exemplar00030-seed0000.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2 + 1 + 2 + 1


def test_several_sets_of_styles_stand_on_one_grid(trained: dict[str, Path], tmp_path: Path) -> None:
    flags = [f"--network={trained['none']}", "--rows=0,1", "--cols=7", f"--outdir={tmp_path}"]
    assert invoke(style_mixing.main, *flags, "--col-styles", "0-1", "2,3").exit_code == 0
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (72 * 5 - 8, 64 * 2)
    for line, (row, number) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)], start=1):
        assert np.array_equal(cell(grid, line, 0), pixels(tmp_path / f"seed000{row}.png"))
        assert np.array_equal(cell(grid, line, 1), pixels(tmp_path / f"seed000{row}+seed0007-set{number}.png"))
    assert not np.array_equal(cell(grid, 1, 1), cell(grid, 3, 1))


@pytest.mark.parametrize("cond", ["class", "instance+class"])
def test_classes_are_mixed_too(trained: dict[str, Path], tmp_path: Path, cond: str) -> None:
    flags = [f"--network={trained[cond]}", "--rows=5", "--row-instances=0,2", "--cols=5", "--col-instances=1"]
    assert invoke(style_mixing.main, *flags, "--trunc=0.7", f"--outdir={tmp_path}").exit_code == 0
    kind = "class" if cond == "class" else "exemplar"
    mixes = [(tmp_path / f"{kind}0000{row}-seed0005+{kind}00001-seed0005.png").read_bytes() for row in (0, 2)]
    assert mixes[0] != mixes[1]


def test_default_styles_are_the_coarse_ones() -> None:
    assert parse_styles((), 18) == [list(range(7))]
    assert parse_styles((), 6) == [[0, 1, 2]]


def test_wrong_input_is_refused(trained: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    net = [f"--network={trained['instance']}", f"--outdir={tmp_path / 'out'}"]
    assert "4 styles; expected 0 to 3" in refused(style_mixing.main, *net, "--col-styles=0-4")
    message = refused(style_mixing.main, *net, "--rows=0-2", "--row-instances=1,2")
    assert "--rows names 3 seeds, --row-instances 2" in message
    assert "beyond the 40 exemplars" in refused(style_mixing.main, *net, "--col-instances=40")
    assert "without w" in refused(style_mixing.main, f"--network={trained['biggan']}")
    assert "not conditioned" in refused(
        style_mixing.main, f"--network={trained['none']}", f"--instance-feats={tmp_path / 'x.npy'}"
    )
    assert not (tmp_path / "out").exists()
