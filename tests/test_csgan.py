"""CSGAN: its networks, losses, pool of fakes and pairs, and runs through train.py."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refused, build_small, invoke, pattern_images, write_zip

import calc_metrics
import generate
import train
from stylegan2_icgan.models import load_model
from stylegan2_icgan.systems.csgan import CSGAN, CSGANOptions
from training.augment import identity
from training.checkpoint import read_state
from training.condition import Condition
from training.fake_pool import FakePool
from training.networks.translation import PatchDiscriminator, Translator, default_blocks, default_patch_layers
from training.randomness import seed_everything
from training.step import Step
from training.system import DataShape, System
from training.translation_loss import (
    DTranslationFake,
    DTranslationReal,
    GTranslation,
    cycle_consistency,
    cyclic_synthesis,
    identity_mapping,
    translated,
)

SMALL = CSGANOptions(ch=4, blocks=1, patch_layers=1, pool_size=6)


def small_system(**changes: Any) -> System:
    shape = DataShape(img_resolution=8, img_channels=1, c_dim=0, h_dim=0)
    return build_small(CSGAN, dataclasses.replace(SMALL, **changes), shape, batch=4)


def make_step(system: System, number: int = 0, rows: int = 4) -> Step:
    """A is four squares, each dark or bright, B is A inverted and brighter."""
    seed_everything(1, number)
    a = torch.kron(torch.randint(0, 2, (rows, 1, 2, 2)) * 1.6 - 0.8, torch.ones(4, 4))
    real = torch.cat([a, 0.3 - 0.6 * a], dim=1)
    nothing = Condition.empty(rows)
    return Step(
        system.networks, real, nothing, torch.zeros(rows, 0), nothing, identity, cur_nimg=rows * number, key=(0, 0)
    )


def train_steps(system: System, first: int, last: int) -> None:
    for number in range(first, last):
        for phase in system.phases:
            system.run(phase, [make_step(system, number)])


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


# Networks


@pytest.mark.parametrize(("layers", "width"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_patch_of_the_discriminator_is_as_wide_as_published(layers: int, width: int) -> None:
    D = PatchDiscriminator(256, 1, ch=2, layers=layers)
    for number, module in enumerate(D.layers):
        if isinstance(module, torch.nn.InstanceNorm2d):
            D.layers[number] = torch.nn.Identity()  # it looks at the whole map
    image = torch.zeros(1, 1, 256, 256, requires_grad=True)
    logits = D(image)
    middle = logits.shape[2] // 2
    logits[0, 0, middle, middle].backward()
    rows = image.grad[0, 0].abs().sum(dim=1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == width


def test_networks_of_the_paper() -> None:
    """Weights counted by hand: CycleGAN's 11,378,179 and 2,764,737 less the biases that an instance norm takes out."""
    G = Translator(256, 3, ch=64, blocks=9, downs=2)
    ends = (3 * 64 + 64 * 3) * 49 + 3
    downs = ups = 9 * (64 * 128 + 128 * 256)
    blocks = 9 * 2 * (256 * 256 * 9)
    assert sum(p.numel() for p in G.AB.parameters()) == ends + downs + ups + blocks
    assert ends + downs + ups + blocks == 11_378_179 - (64 + 128 + 256 + 18 * 256 + 128 + 64)
    D = PatchDiscriminator(256, 3, ch=64, layers=3)
    assert sum(p.numel() for p in D.parameters()) == 2_764_737 - (128 + 256 + 512)
    assert D(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    assert [default_blocks(r) for r in (16, 128, 256)] == [3, 6, 9]
    assert [default_patch_layers(r) for r in (8, 16, 32, 64, 256)] == [1, 1, 2, 3, 3]


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_translator_keeps_shape_and_range(resolution: int) -> None:
    options = CSGANOptions(ch=2, **{k: v for k, (v, _) in CSGAN.derive(SMALL, resolution, 1, 1).items()})
    G = CSGAN.networks["G"](options, DataShape(resolution, 3, 0, 0))
    images = torch.rand(2, 3, resolution, resolution) * 2 - 1
    assert (G.z_dim, G.c_dim, G.h_dim, G.img_channels, G.img_resolution) == (0, 0, 0, 3, resolution)
    for direction in ("AB", "BA"):
        out = G(images, direction)
        assert out.shape == images.shape
        assert out.abs().max() <= 1
    assert torch.equal(G(images, "AB"), G.AB(images))
    with pytest.raises(ValueError, match="direction: 'B' is not one of AB, BA"):
        G(images, "B")
    with pytest.raises(ValueError, match=r"img: expected floating-point \[N, 3"):
        G(images[:, :1], "AB")


# Losses


class Shift(torch.nn.Module):
    """x -> x * gain + shift."""

    def __init__(self, gain: float, shift: float) -> None:
        super().__init__()
        self.gain, self.shift = (torch.nn.Parameter(torch.tensor(value)) for value in (gain, shift))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain + self.shift


def shifting_step(**changes: Any) -> Step:
    """Domains of one value: a = 1, b = 3; AB adds 4, BA doubles; D of A halves, D of B is what it sees."""
    G = torch.nn.Module()
    G.AB, G.BA = Shift(1.0, 4.0), Shift(2.0, 0.0)
    D = torch.nn.ModuleDict({"A": Shift(0.5, 0.0), "B": Shift(1.0, 0.0)})
    real = torch.tensor([1.0, 3.0])[None, :, None, None].expand(2, 2, 3, 3)
    nothing = Condition.empty(2)
    return Step({"G": G, "D": D}, real, nothing, torch.zeros(2, 0), nothing, **{"augment": identity} | changes)


def test_every_equation_gives_what_it_says() -> None:
    step = shifting_step()
    pairs = translated(step)
    assert [float(x.detach().mean()) for x in pairs] == [1, 3, 6, 5, 10, 10]  # a, b, BA(b), AB(a), BA(AB(a)), AB(BA(b))
    assert cycle_consistency(pairs).tolist() == [9 + 7] * 2
    assert cyclic_synthesis(pairs).tolist() == [4 + 5] * 2
    assert identity_mapping(step, pairs).tolist() == [1 + 4] * 2
    adversarial = (3 - 1) ** 2 + (5 - 1) ** 2
    assert GTranslation(10, 30, 0)(step).tolist() == [adversarial + 10 * 16 + 30 * 9] * 2
    assert GTranslation(0, 0, 5)(step).tolist() == [adversarial + 5 * 5] * 2
    assert DTranslationReal("A")(step).tolist() == [0.5 * (0.5 - 1) ** 2] * 2
    assert DTranslationFake("A", FakePool(0, 0))(step).tolist() == [0.5 * 3**2] * 2
    assert DTranslationFake("B", FakePool(0, 0))(step).tolist() == [0.5 * 5**2] * 2


def test_stop_gradient_of_cyclic_synthesis_reaches_the_synthesising_generator_only() -> None:
    """|2 b - Cyc_A| + |a + 4 - Cyc_B|, both negative inside, so that d/d shift is -1 for either generator."""
    step = shifting_step()
    cyclic_synthesis(translated(step)).mean().backward()
    assert (step.G.BA.shift.grad.item(), step.G.AB.shift.grad.item()) == pytest.approx((-1, -1))
    # The gains get -b and -a. Through Cyc_A = 2 (a + 4) and Cyc_B = 2 b + 4 they would get more.
    assert (step.G.BA.gain.grad.item(), step.G.AB.gain.grad.item()) == pytest.approx((-3, -1))


def test_discriminators_see_augmented_images_and_generators_do_not() -> None:
    seen: list[torch.Size] = []
    told: list[torch.Tensor] = []

    def augment(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape)
        return images * 0

    step = shifting_step(augment=augment, observe=told.append)
    assert GTranslation(1, 1, 0)(step).tolist() == [2 + 16 + 9] * 2  # only what D says has changed
    DTranslationReal("B")(step)
    assert set(seen) == {(2, 1, 3, 3)}  # images of one domain
    assert [row.tolist() for row in told] == [[-0.5, -0.5]]  # D says 0, nearer to fake


# Phases


def test_generators_are_trained_first_and_each_phase_moves_its_own_networks() -> None:
    system = small_system()
    assert [(phase.name, phase.trains, phase.interval) for phase in system.phases] == [("G", "G", 1), ("D", "D", 1)]
    for phase in system.phases:
        before = {name: weights(network) for name, network in system.networks.items()}
        system.run(phase, [make_step(system)])
        for name, network in system.networks.items():
            assert torch.equal(before[name], weights(network)) == (name != phase.trains)
        for part in system.networks[phase.trains].children():
            assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())


def test_optimisers_are_those_of_the_paper() -> None:
    system = CSGAN.build(CSGANOptions(), small_system().networks)
    for optimizer in system.optimizers.values():
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"]) == (2e-4, (0.5, 0.999))


def test_learning_rates_fall_in_a_straight_line() -> None:
    system = small_system(g_lr=1.0, lr_hold=0.1, lr_fall=0.2)
    assert system.lr_factor is not None
    rates = [system.lr_factor(cur_nimg) for cur_nimg in (0, 100, 150, 200, 290, 1000)]
    assert rates == pytest.approx([1, 1, 0.75, 0.5, 0.05, 0.01])
    system.run(system.phases[0], [dataclasses.replace(make_step(system), cur_nimg=200)])
    assert system.optimizers["G"].param_groups[0]["lr"] == pytest.approx(0.5)
    assert small_system().lr_factor(10**9) == 1
    assert CSGAN.derive(dataclasses.replace(SMALL, lr_hold=40.0), 256, 1, 1)["lr_fall"][0] == 40.0


def test_it_learns_to_translate() -> None:
    """Both ways, from pairs: translations come far closer to the other image than the image itself is."""
    system = small_system(ch=8, cs_weight=3.0, g_lr=5e-3)
    train_steps(system, 0, 40)
    step = make_step(system, 1000, rows=16)
    real_a, real_b = step.real.chunk(2, dim=1)
    with torch.no_grad():
        pairs = translated(step)
    apart = (real_a - real_b).abs().mean()
    assert (pairs.fake_b - real_b).abs().mean() < 0.5 * apart
    assert (pairs.fake_a - real_a).abs().mean() < 0.5 * apart


# Runs


def write_halves(tmp_path: Path, count: int = 20) -> tuple[Path, Path]:
    """Zips of grey 8x8 patterns, and of the same inverted."""
    images, _ = pattern_images(count)
    names = [f"{number:03d}.png" for number in range(count)]
    inverted = [255 - image for image in images]
    return write_zip(tmp_path / "A.zip", images, names=names), write_zip(tmp_path / "B.zip", inverted, names=names)


RUN = ["--cfg=csgan-tiny", "--ch=4", "--blocks=1", "--pool-size=6", "--batch=4", "--tick=0.016", "--snap=1"]
RUN += ["--device=cpu"]


def members_of(outdir: Path) -> dict[str, Any]:
    (run,) = outdir.iterdir()
    members: dict[str, Any] = read_state(max(run.glob("training-state-*.pt")))["members"]
    return members


def assert_equal(ours: Any, theirs: Any) -> None:
    """Of nested dictionaries and lists of tensors."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert set(ours) == set(theirs)
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert ours == theirs


def test_run_resumes_bit_for_bit_with_other_rounds_and_is_refused_elsewhere(refused: Refused, tmp_path: Path) -> None:
    a, b = write_halves(tmp_path)
    flags = [*RUN, f"--data={a}", f"--data-b={b}", "--lr-hold=0.016", "--mirror"]
    assert invoke(train.main, *flags, "--kimg=0.048", f"--outdir={tmp_path / 'whole'}").exit_code == 0
    assert invoke(train.main, *flags, "--kimg=0.016", f"--outdir={tmp_path / 'parts'}").exit_code == 0
    b = b.rename(tmp_path / "moved.zip")
    again = ["--resume=latest", f"--data-b={b}", f"--outdir={tmp_path / 'parts'}"]
    resumed = invoke(train.main, *again, "--kimg=0.048")
    assert resumed.exit_code == 0, resumed.output
    whole, parts = members_of(tmp_path / "whole"), members_of(tmp_path / "parts")
    for name in ("G", "D", "G_ema", "G_optimizer", "D_optimizer", "fakes_A", "fakes_B"):
        assert_equal(whole[name], parts[name])
    assert whole["fakes_A"]["count"] == 48
    assert len(whole["fakes_B"]["images"]) == 6
    assert whole["G_optimizer"]["param_groups"][0]["lr"] < 1e-3

    run = next((tmp_path / "whole").iterdir())
    assert {"reals.png", "fakes000000.png"} < {file.name for file in run.iterdir()}
    assert "Loss/G/cyclic_synthesis" in json.loads((run / "stats.jsonl").read_text().splitlines()[-1])
    snapshot = max(run.glob("network-snapshot-*.pt"))
    G = load_model(snapshot, torch.device("cpu"), translator=True).generator
    assert G(torch.zeros(1, 1, 8, 8), "BA").shape == (1, 1, 8, 8)
    message = "is of system 'csgan', which translates images; use translate.py"
    assert message in refused(generate.main, f"--network={snapshot}", f"--outdir={tmp_path / 'out'}")
    assert message in refused(calc_metrics.main, f"--network={snapshot}", "--metrics=fid2k")
    assert not (tmp_path / "out").exists()

    images, _ = pattern_images(20, seed=5)
    write_zip(b, images, names=[f"{number:03d}.png" for number in range(20)])
    refused(train.main, *again, "--kimg=0.064")  # other partners than it was started with


def test_rounds_add_up_to_the_batch(tmp_path: Path) -> None:
    a, b = write_halves(tmp_path)
    for size in (4, 1):
        flags = [*RUN, f"--data={a}", f"--data-b={b}", "--kimg=0.016", f"--batch-gpu={size}"]
        assert invoke(train.main, *flags, f"--outdir={tmp_path / str(size)}").exit_code == 0
    one, four = members_of(tmp_path / "4"), members_of(tmp_path / "1")
    assert one["fakes_A"]["count"] == four["fakes_A"]["count"] == 16
    torch.testing.assert_close(one["G"], four["G"], rtol=0, atol=1e-3)
    torch.testing.assert_close(one["fakes_A"]["images"], four["fakes_A"]["images"], rtol=0, atol=0.01)


@pytest.mark.parametrize("aug", ["ada", "diffaug"])
def test_augmentations_take_images_of_one_domain(aug: str, tmp_path: Path) -> None:
    a, b = write_halves(tmp_path)
    flags = [*RUN, f"--data={a}", f"--data-b={b}", f"--aug={aug}", "--kimg=0.016", f"--outdir={tmp_path / 'runs'}"]
    assert invoke(train.main, *flags).exit_code == 0
    if aug == "ada":
        (line,) = next((tmp_path / "runs").glob("*/stats.jsonl")).read_text().splitlines()
        assert -1 <= json.loads(line)["Progress/overfitting"]["mean"] <= 1


def test_what_cannot_be_is_refused(refused: Refused, tmp_path: Path) -> None:
    a, b = write_halves(tmp_path)
    run = [*RUN, f"--data={a}", f"--outdir={tmp_path / 'runs'}"]
    pair = [*run, f"--data-b={b}"]
    assert "csgan learns from pairs; name the other half with --data-b=ZIP" in refused(train.main, *run)
    assert f"--data-b={b}: stylegan2 learns from single images" in refused(train.main, "--cfg=tiny", *pair[len(RUN) :])
    assert "--cond=instance: csgan has no use for that" in refused(train.main, *pair, "--cond=instance")
    assert "--metrics=fid50k_full" in refused(train.main, *pair, "--metrics=fid50k_full")
    assert "--data-b=nowhere.zip does not exist" in refused(train.main, *run, "--data-b=nowhere.zip")
    images, _ = pattern_images(20)
    names = [f"{number:03d}.png" for number in range(20)]
    unpaired = write_zip(tmp_path / "unpaired.zip", images[:18], names=[*names[:17], "other.png"])
    message = refused(train.main, *run, f"--data-b={unpaired}")
    assert "3 images of A.zip have no partner of their name in unpaired.zip: 017, 018, 019;" in message
    larger, _ = pattern_images(20, side=16)
    sides = write_zip(tmp_path / "sides.zip", larger, names=names)
    assert "--data has images of 8x8, --data-b of 16x16 pixels" in refused(train.main, *run, f"--data-b={sides}")
    twice = write_zip(tmp_path / "twice.zip", images, names=["000.png", "000.bmp", *names[2:]])
    assert "000.bmp and 000.png differ in their endings only" in refused(train.main, *run, f"--data-b={twice}")
    assert not (tmp_path / "runs").exists()


def test_dry_run_shows_all_four_networks(tmp_path: Path) -> None:
    a, b = write_halves(tmp_path)
    result = invoke(train.main, *RUN, f"--data={a}", f"--data-b={b}", "--dry-run")
    assert result.exit_code == 0, result.output
    for part in ("AB.layers", "BA.layers", "A.layers", "B.layers", "Estimated"):
        assert part in result.output
