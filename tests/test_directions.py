from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import Refused, invoke

import directions
import generate
from stylegan2_icgan.models import load_model
from stylegan2_icgan.using.factorisation import factorise, move


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def styles(generator: torch.nn.Module, w: torch.Tensor) -> torch.Tensor:
    """What the convolutions and the last layer to the image are modulated with, all in a row."""
    synthesis = generator.synthesis
    layers = [synthesis.b4.conv1, synthesis.b8.conv0, synthesis.b8.conv1]
    last = synthesis.b8.torgb
    return torch.cat([layer.affine(w) for layer in layers] + [last.affine(w) * last.weight_gain], dim=1)


def test_directions_move_the_styles_most(trained: dict[str, Path]) -> None:
    generator = load_model(trained["none"], torch.device("cpu")).generator
    found = factorise(generator.synthesis, range(4), 8)
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(8), atol=1e-5)
    w = torch.randn(1, 8)
    effect = [(styles(generator, w + v) - styles(generator, w)).square().sum().item() for v in found.vectors]
    assert np.allclose(effect, found.eigenvalues, rtol=1e-3)
    assert effect == sorted(effect, reverse=True)
    at_random = torch.nn.functional.normalize(torch.randn(200, 8), dim=1)
    assert (styles(generator, w + at_random) - styles(generator, w)).square().sum(dim=1).max() <= effect[0] * 1.001
    again = factorise(generator.synthesis, range(4), 3)
    assert torch.equal(again.vectors, found.vectors[:3])
    assert (found.vectors.gather(1, found.vectors.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_layers_choose_what_is_factorised_and_moved(trained: dict[str, Path]) -> None:
    generator = load_model(trained["none"], torch.device("cpu")).generator
    found = factorise(generator.synthesis, [1], 1)
    weight = generator.synthesis.b8.conv0.affine.weight.double() * generator.synthesis.b8.conv0.affine.weight_gain
    assert np.isclose(np.linalg.svd(weight.numpy(), compute_uv=False)[0] ** 2, found.eigenvalues[0], rtol=1e-5)
    ws = torch.randn(2, 4, 8)
    moved = move(ws, found.vectors[0], [1, 2], -2.5)
    assert torch.equal(moved[:, [0, 3]], ws[:, [0, 3]])
    assert torch.allclose(moved[:, 1:3], ws[:, 1:3] - 2.5 * found.vectors[0])


def test_strips_go_through_the_image_itself(trained: dict[str, Path], tmp_path: Path) -> None:
    network = f"--network={trained['instance']}"
    flags = [network, "--seeds=0,1", "--instances=exemplars:4,9", "--num=2", "--steps=5", "--layers=0-2"]
    result = invoke(directions.main, *flags, f"--outdir={tmp_path / 'strips'}")
    assert result.exit_code == 0, result.output
    pair = {(4, 0): 0, (9, 1): 1}
    for (row, seed), line in pair.items():
        own = [network, f"--rows={row}", f"--seeds={seed}", f"--outdir={tmp_path / 'own'}"]
        assert invoke(generate.main, *own).exit_code == 0
        expected = pixels(tmp_path / "own" / f"exemplar{row:05d}-seed{seed:04d}.png")
        for number in (0, 1):
            strip = pixels(tmp_path / "strips" / f"direction{number:02d}.png")
            assert strip.shape == (72 * 2 - 8, 64 + 32 + 5 * 64)  # the instance, a gap, five steps
            steps = [strip[72 * line : 72 * line + 64 : 8, 96 + 64 * i : 160 + 64 * i : 8] for i in range(5)]
            assert np.array_equal(steps[2], expected)
            assert len({step.tobytes() for step in steps}) == 5
    with np.load(tmp_path / "strips" / "directions.npz") as arrays:
        assert arrays["directions"].shape == (2, 8)
        assert arrays["directions"].dtype == np.float32
        assert arrays["eigenvalues"].shape == (2,)
        assert arrays["layers"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("cond", ["none", "class", "instance+class"])
def test_every_model_with_styles_has_directions(trained: dict[str, Path], tmp_path: Path, cond: str) -> None:
    flags = [f"--network={trained[cond]}", "--seeds=3", "--num=1", "--steps=2", f"--outdir={tmp_path}"]
    assert invoke(directions.main, *flags).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"direction00.png", "directions.npz"}


def test_wrong_input_is_refused(trained: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    net = [f"--network={trained['instance']}", f"--outdir={tmp_path / 'out'}"]
    assert "4 styles; expected 0 to 3" in refused(directions.main, *net, "--layers=2,4")
    assert "w is 8 wide" in refused(directions.main, *net, "--num=9")
    assert "--steps=1" in refused(directions.main, *net, "--steps=1")
    assert "--strength=0.0" in refused(directions.main, *net, "--strength=0")
    assert "2 seeds" in refused(directions.main, *net, "--seeds=0,1", "--rows=1-3")
    assert "without w" in refused(directions.main, f"--network={trained['biggan']}")
    assert not (tmp_path / "out").exists()


def test_directions_do_not_depend_on_the_noise(trained: dict[str, Path], tmp_path: Path) -> None:
    """Found in the weights alone: other seeds, the same file."""
    flags = [f"--network={trained['class']}", "--num=2", "--steps=2"]
    for seed in (0, 1):
        assert invoke(directions.main, *flags, f"--seeds={seed}", f"--outdir={tmp_path / str(seed)}").exit_code == 0
    one, two = (tmp_path / str(seed) / "directions.npz" for seed in (0, 1))
    assert one.read_bytes() == two.read_bytes()
