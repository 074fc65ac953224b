"""U-Net GAN: its networks have the published sizes; CutMix mixes, and asks for what it should."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Refused, build_small

import train
from stylegan2_icgan.systems.unet import UNET, UNetOptions, is_mixed
from torch_utils import training_stats
from torch_utils.command_line import UserError
from training import cutmix, pixel_loss
from training.augment import identity
from training.condition import Condition
from training.cutmix import CutMix, cutmix_masks
from training.mixed_precision import Precision
from training.networks import unet
from training.randomness import seed_everything
from training.step import Step
from training.system import DataShape, System

SMALL = UNetOptions(z_dim=6, ch=1, shared_dim_feat=4, g_lr=2e-3, d_lr=2e-3, cutmix_warmup=0)
CPU = torch.device("cpu")


def small_system(c_dim: int = 3, h_dim: int = 5, **changes: Any) -> System:
    shape = DataShape(img_resolution=16, img_channels=1, c_dim=c_dim, h_dim=h_dim)
    return build_small(UNET, dataclasses.replace(SMALL, **changes), shape)


def make_step(system: System, rows: int = 8) -> Step:
    seed_everything(1)
    G = system.networks["G"]
    c, h = torch.eye(3)[torch.arange(rows) % 3][:, : G.c_dim], torch.randn(rows, 5)[:, : G.h_dim]
    real, z = torch.randn(rows, 1, 16, 16).clamp(-1, 1), torch.randn(rows, G.z_dim)
    return Step(system.networks, real, Condition(c, h), z, Condition(c, h)[list(range(rows - 1, -1, -1))], identity)


# Networks


@pytest.mark.parametrize(("side", "d_count", "g_count"), [(128, 31_481_667, 33_732_739), (256, 44_067_651, 39_043_203)])
def test_networks_have_as_many_parameters_as_published(side: int, d_count: int, g_count: int) -> None:
    with torch.device("meta"):
        D, G = unet.Discriminator(0, side, 3, init="normal"), unet.Generator(128, side, 3, init="normal")
    counted = [sum(p.numel() for p in network.parameters()) for network in (D, G)]
    unused = 64 + 1  # the published discriminator has a linear layer from ch to 1 that its forward pass never uses
    assert counted == [d_count - unused, g_count]


@pytest.mark.parametrize(("c_dim", "h_dim"), [(0, 0), (3, 0), (0, 5), (3, 5)])
@pytest.mark.parametrize("side", [8, 32])
def test_both_heads_judge(side: int, c_dim: int, h_dim: int) -> None:
    D = unet.Discriminator(c_dim, side, 3, h_dim, ch=1).eval()
    img, c, h = torch.randn(2, 3, side, side), torch.eye(3)[:2, :c_dim], torch.randn(2, h_dim)
    logits, pixels = D.both(img, c, h)
    assert (logits.shape, pixels.shape) == ((2, 1), (2, 1, side, side))
    torch.testing.assert_close(D(img, c, h), logits)
    torch.testing.assert_close(
        D.linear(D.features(img)), logits - D.projection(D.features(img)[..., None, None], c, h).flatten(1)
    )
    for there, other in ((c_dim, D.both(img, c.flip(0), h)), (h_dim, D.both(img, c, h.flip(0)))):
        for ours, theirs in zip((logits, pixels), other, strict=True):
            assert torch.equal(ours, theirs) == (there == 0)


def test_the_decoder_sees_every_map_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    D = unet.Discriminator(0, 32, 1, ch=1).eval()
    img = torch.randn(2, 1, 32, 32)
    maps = D._encode(img)
    logits, pixels = D.both(img)
    for number in range(len(maps)):
        changed = [2 * x if place == number else x for place, x in enumerate(maps)]
        monkeypatch.setattr(D, "_encode", lambda img, changed=changed: changed)
        other = D.both(img)
        assert not torch.equal(other[1], pixels)
        assert torch.equal(other[0], logits) == (number < len(maps) - 1)


def test_pixels_are_judged_where_they_are() -> None:
    """Only the deepest maps see the whole of an image: far from a change, a logit hardly moves."""
    torch.manual_seed(0)
    D = unet.Discriminator(0, 64, 1, ch=1).eval()
    img = torch.randn(1, 1, 64, 64)
    changed = img.clone()
    changed[:, :, :8, :8] += 1
    moved = (D.both(changed)[1] - D.both(img)[1]).abs()[0, 0]
    assert moved[:8, :8].mean() > 3 * moved[-16:, -16:].mean()


def test_unconditional_generator_modulates_every_stage_by_z() -> None:
    G = unet.Generator(6, 16, 1, ch=2)
    torch.testing.assert_close(G.linear(torch.zeros(2, 6)), G.linear(torch.ones(2, 6)) * 0 + G.linear.bias)
    norm = G.blocks[1][0].bn1
    assert not torch.equal(norm.gain(torch.zeros(1, 6)), norm.gain(torch.ones(1, 6)))
    assert G(torch.randn(2, 6), truncation_psi=0.5).shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unet.Discriminator(0, 512, 3), "img_resolution: 512, ch: 64; expected one of 8, 16"),
        (lambda: unet.Discriminator(0, 8, 3, ch=1).both(torch.zeros(2, 1, 8, 8)), "img: expected floating-point"),
        (lambda: unet.Discriminator(3, 8, 1, ch=1).both(torch.zeros(2, 1, 8, 8)), "c: this network takes class labels"),
    ],
)
def test_networks_refuse_what_they_can_not_take(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Losses


class Given(torch.nn.Module):
    """A discriminator whose logits are pixels of the image: the mean of all, and each."""

    def both(self, img: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return img.mean(dim=[1, 2, 3])[:, None], self.judge(img.mean(dim=1, keepdim=True))

    def judge(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


class Smeared(Given):
    """Whose pixels depend on their neighbours."""

    def judge(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(pixels, 3, stride=1, padding=1)


def given_step(D: torch.nn.Module, rows: int = 6, side: int = 8) -> Step:
    torch.manual_seed(0)
    nothing = Condition.empty(rows)
    G = torch.nn.Identity()
    real, fake = torch.randn(2, rows, 1, side, side)
    return Step({"D": D, "G": G}, real, nothing, fake, nothing, identity)


def as_is(step: Step, z: torch.Tensor, cond: Condition) -> torch.Tensor:
    return z


def test_terms_equal_their_formulas() -> None:
    step = given_step(Given())
    for term, images, sign in (
        (pixel_loss.d_pixels_real, step.real, -1),
        (pixel_loss.DPixelsFake(as_is), step.z, 1),
        (pixel_loss.GPixels(as_is), step.z, -1),
    ):
        whole = -torch.sigmoid(-sign * images.mean(dim=[1, 2, 3])).log()
        each = -torch.sigmoid(-sign * images).log().mean(dim=[1, 2, 3])
        torch.testing.assert_close(term(step), (whole + each) / 2)


def test_the_judge_of_each_pixel_alone_is_consistent() -> None:
    """dec(mix) = mix(dec) for whatever looks at one pixel at a time, and for nothing else."""
    inconsistent = []
    for D in (Given(), Smeared()):
        collector = training_stats.Collector()
        CutMix(1.0, as_is)(given_step(D))
        inconsistent.append(collector.collect()["Loss/D/inconsistency"]["mean"])
    assert inconsistent[0] == pytest.approx(0, abs=1e-12)
    assert inconsistent[1] > 1e-3


def test_mixed_images_are_fake_and_their_pixels_what_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    step = given_step(Smeared())
    mask = torch.zeros(6, 1, 8, 8)
    mask[..., :3] = 1
    monkeypatch.setattr(cutmix, "cutmix_masks", lambda num, side, device: mask)
    mixed = torch.cat([step.real[..., :3], step.z[..., 3:]], dim=3)
    logits, pixels = step.D.both(mixed, step.z, step.z)
    parts = torch.cat(
        [step.D.both(step.real, step.z, step.z)[1][..., :3], step.D.both(step.z, step.z, step.z)[1][..., 3:]], dim=3
    )
    whole = -torch.sigmoid(-logits[:, 0]).log()
    each = -torch.cat([torch.sigmoid(pixels[..., :3]), torch.sigmoid(-pixels[..., 3:])], dim=3).log()
    expected = whole + each.mean(dim=[1, 2, 3]) + 0.7 * (pixels - parts).square().mean(dim=[1, 2, 3])
    torch.testing.assert_close(CutMix(0.7, as_is)(step), expected)


def test_fakes_have_the_condition_of_the_images_they_are_mixed_with() -> None:
    system, asked = small_system(), []

    def generate(step: Step, z: torch.Tensor, cond: Condition) -> torch.Tensor:
        asked.append(cond)
        return torch.zeros_like(step.real)

    step = make_step(system)
    CutMix(1.0, generate)(step)
    assert asked == [step.real_cond]


def test_masks_cut_one_square_out() -> None:
    """Sides are sqrt(1 - lambda) of the image's, with lambda uniform; real and fake have half of it each."""
    torch.manual_seed(0)
    masks = cutmix_masks(2000, 32, CPU)
    assert masks.shape == (2000, 1, 32, 32)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert float(masks.mean()) == pytest.approx(0.5, abs=0.02)
    corners = torch.stack([masks[..., 0, 0], masks[..., 0, -1], masks[..., -1, 0], masks[..., -1, -1]])
    inverted = corners.mean(dim=0).squeeze(1) < 0.5  # what is outside the square, where most corners are
    square = torch.where(inverted[:, None, None], masks[:, 0], 1 - masks[:, 0])
    rows, columns = square.amax(dim=2), square.amax(dim=1)
    clean = square.sum(dim=[1, 2]) <= 20 * 20  # those that are not cut off to less than a corner rule can tell
    assert torch.equal(square[clean], (rows[:, :, None] * columns[:, None, :])[clean])  # a rectangle
    share = 1 - torch.rand(200_000)
    x, y = torch.rand(2, 200_000)
    ends = [(p + share.sqrt() / 2).clamp(max=1) - (p - share.sqrt() / 2).clamp(min=0) for p in (x, y)]
    area = torch.minimum(masks.mean(dim=[1, 2, 3]), 1 - masks.mean(dim=[1, 2, 3]))
    expected = torch.minimum(ends[0] * ends[1], 1 - ends[0] * ends[1])
    for q in (0.25, 0.5, 0.75):
        assert float(area.quantile(q)) == pytest.approx(float(expected[:100_000].quantile(q)), abs=0.03)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_images_are_mixed_in_16_bits(precision: str) -> None:
    system = small_system(cutmix=1.0)
    term = next(phase for phase in system.phases if phase.name == "Dmix").terms[0]
    values = []
    for name in ("fp32", precision):
        with Precision(name).autocast(CPU):
            values.append(term(make_step(system)))
    assert values[1].dtype == torch.float32
    torch.testing.assert_close(values[1], values[0], rtol=0.05, atol=0.05)


# Phases


def test_the_share_of_mixed_steps_grows_in_a_straight_line() -> None:
    mixed = torch.tensor([is_mixed(step, share=0.5, warmup=8_000) for step in range(12_000)]).float()
    thirds = mixed.unflatten(0, (3, -1)).mean(dim=1).tolist()
    assert thirds == pytest.approx([0.125, 0.375, 0.5], abs=0.03)
    assert not any(is_mixed(step, 0.0, 0) for step in range(100))
    assert all(is_mixed(step, 1.0, 0) for step in range(100))


def test_a_step_of_the_discriminator_is_of_one_kind() -> None:
    phases = {phase.name: phase for phase in small_system(cutmix=0.5, d_steps=2).phases}
    assert {phase.trains for name, phase in phases.items() if name != "G"} == {"D"}
    kinds = {(phases["D"].due(step), phases["Dmix"].due(step)) for step in range(100)}
    assert kinds == {(True, False), (False, True)}
    assert [step for step in range(6) if phases["G"].due(step)] == [0, 2, 4]


@pytest.mark.parametrize(("c_dim", "h_dim"), [(0, 0), (3, 0), (0, 5), (3, 5)])
def test_every_parameter_learns(c_dim: int, h_dim: int) -> None:
    system = small_system(c_dim, h_dim)
    seen: dict[str, set[str]] = {name: set() for name in system.networks}
    for _ in range(2):
        for phase in system.phases:
            system.run(phase, [make_step(system)])
            network = system.networks[phase.trains]
            seen[phase.trains] |= {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    for name, network in system.networks.items():
        assert {key for key, _ in network.named_parameters()} == seen[name], name


def test_what_can_not_work_is_refused(refused: Refused, patterns_zip: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data has 512 x 512 images; U-Net GAN has layers for 8, 16"):
        UNET.check(SMALL, 512, 8)
    flags = ["--cfg=unet-tiny", f"--data={patterns_zip}", f"--outdir={tmp_path}"]
    assert "--cutmix=2.0: expected 0 to 1" in refused(train.main, *flags, "--cutmix=2")
    assert "--batch-gpu=1: batch normalisation" in refused(train.main, *flags, "--batch-gpu=1")
    assert "--attention is no option of unet" in refused(train.main, *flags, "--attention=8")
