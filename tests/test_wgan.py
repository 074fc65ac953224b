"""WGAN: its networks, the two ways to keep the critic Lipschitz, and when the generator's turn comes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refused, build_small

import train
from stylegan2_icgan.options import resolve
from stylegan2_icgan.systems.wgan import WGAN, WGANOptions, after_critic
from torch_utils import training_stats
from torch_utils.command_line import UserError
from training import wasserstein
from training.augment import identity
from training.condition import Condition
from training.networks import dcgan, mlp
from training.randomness import seed_everything
from training.step import Step
from training.system import DataShape, System
from training.transfer import first_layers

SMALL = WGANOptions(z_dim=6, ch=4, mlp_width=8, g_lr=1e-3, d_lr=1e-3, critic_steps=5)


def small_system(**changes: Any) -> System:
    shape = DataShape(img_resolution=16, img_channels=1, c_dim=0, h_dim=0)
    return build_small(WGAN, dataclasses.replace(SMALL, **changes), shape)


def make_step(system: System, rows: int = 8) -> Step:
    """Images that are bright where a critic of the first steps may see it."""
    seed_everything(1)
    real = (0.5 + 0.3 * torch.randn(rows, 1, 16, 16)).clamp(-1, 1)
    z = torch.randn(rows, system.networks["G"].z_dim)
    return Step(system.networks, real, Condition.empty(rows), z, Condition.empty(rows), identity)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# Networks


def test_dcgan_has_as_many_parameters_as_published() -> None:
    """Counts of the DCGAN of 64x64 that the WGAN code shares with PyTorch's own example."""
    networks = dcgan.Generator(100, 64, 3), dcgan.Discriminator(64, 3)
    assert [len(weights(network)) for network in networks] == [3_576_704, 2_765_568]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_networks_of_every_size_make_and_judge_images(side: int, channels: int) -> None:
    for G, D in (
        (dcgan.Generator(5, side, channels, ch=2), dcgan.Discriminator(side, channels, ch=2)),
        (mlp.Generator(5, side, channels, width=4), mlp.Discriminator(side, channels, width=4)),
    ):
        images = G(torch.randn(3, 5), torch.zeros(3, 0), None, truncation_psi=0.7, noise_mode="const")
        assert images.shape == (3, channels, side, side)
        assert D(images, torch.zeros(3, 0), None).shape == (3, 1)


def test_truncation_shrinks_z() -> None:
    G = dcgan.Generator(5, 8, 1, ch=2).eval()
    z = torch.randn(3, 5)
    torch.testing.assert_close(G(z, truncation_psi=0.5), G(z * 0.5))
    torch.testing.assert_close(G(z, truncation_psi=0.5, truncation_cutoff=0), G(z))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dcgan.Generator(5, 256, 1), "img_resolution: 256 has no layers; expected one of 8, 16"),
        (lambda: dcgan.Discriminator(16, 1, ch=0), "ch: 0 leaves no channels"),
        (lambda: mlp.Generator(5, 8, 1)(torch.zeros(2, 4)), r"z: expected noise \[N, 5\]"),
        (lambda: mlp.Generator(5, 8, 1)(torch.zeros(2, 5), torch.zeros(2, 3)), "c: expected class labels"),
        (lambda: mlp.Generator(5, 8, 1)(torch.zeros(2, 5), noise_mode="loud"), "noise_mode: 'loud' is not one of"),
        (lambda: mlp.Discriminator(8, 1)(torch.zeros(2, 3, 8, 8)), "img: expected floating-point"),
    ],
)
def test_networks_refuse_what_they_can_not_take(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Losses


def test_the_estimate_is_what_the_critic_likes_real_images_better_by() -> None:
    system = small_system()
    step = make_step(system)
    for network in system.networks.values():
        network.eval()  # so that a second pass gives the same
    collector = training_stats.Collector()
    wasserstein.Critic()(step)
    mean = {name: stat["mean"] for name, stat in collector.collect().items()}
    with torch.no_grad():
        better = step.D(step.real).mean() - step.D(step.G(step.z)).mean()
    assert mean["Loss/wasserstein"] == pytest.approx(float(better), rel=1e-4)
    assert mean["Loss/wasserstein"] == pytest.approx(mean["Loss/scores/real"] - mean["Loss/scores/fake"], rel=1e-4)


@pytest.mark.parametrize("penalty", ["clip", "gp"])
def test_the_estimate_grows_as_the_critic_learns_and_falls_as_the_generator_does(penalty: str) -> None:
    system, collector = small_system(penalty=penalty), training_stats.Collector()
    critic, generator = system.phases

    def estimate() -> float:
        with torch.no_grad():
            return -float(wasserstein.Critic()(make_step(system)).mean())

    before = estimate()
    for _ in range(15):
        system.run(critic, [make_step(system)])
    learned = estimate()
    for _ in range(15):
        system.run(generator, [make_step(system)])
    assert before < learned
    assert learned > 0
    assert estimate() < learned
    assert collector.collect()["Loss/wasserstein"]["num"] > 0


def test_weights_of_the_critic_are_clipped_after_its_step_and_no_others() -> None:
    system = small_system(clip=0.003)
    before = weights(system.networks["G"]).clone()
    for phase in system.phases[:1]:
        system.run(phase, [make_step(system)])
    clipped = weights(system.networks["D"])
    assert float(clipped.abs().max()) == pytest.approx(0.003)
    assert (system.networks["D"].trunk.norms[1].gain.abs() <= 0.003).all()  # gains, which start at 1, among them
    assert torch.equal(weights(system.networks["G"]), before)
    system.run(system.phases[1], [make_step(system)])
    assert float(weights(system.networks["G"]).abs().max()) > 0.5
    assert torch.equal(weights(system.networks["D"]), clipped)


def test_frozen_layers_of_the_critic_are_not_clipped() -> None:
    system = small_system(clip=0.003)
    network = system.networks["D"]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    system.frozen["D"] = first_layers(network, 1)
    for phase in (system.phases[0], system.phases[1], system.phases[0]):  # in between the whole critic stands still
        system.run(phase, [make_step(system)])
    largest = {name: float(p.detach().abs().max()) for name, p in network.named_parameters()}
    assert all(torch.equal(network.get_parameter(name), before[name]) for name in system.frozen["D"])
    assert max(largest[name] for name in system.frozen["D"]) > 0.01
    assert max(value for name, value in largest.items() if name not in system.frozen["D"]) == pytest.approx(0.003)


def test_gradient_penalty_of_a_linear_critic() -> None:
    class Linear(torch.nn.Module):
        def forward(self, img: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return img.flatten(1) @ torch.tensor([[2.0], [-1.0], [2.0], [0.0]])  # of length 3

    networks = {"D": Linear(), "G": torch.nn.Identity()}
    nothing, real = Condition.empty(3), torch.randn(3, 1, 2, 2)
    step = Step(networks, real, nothing, torch.randn(3, 1, 2, 2), nothing, identity)
    penalty = wasserstein.GradientPenalty(10.0, generate=lambda step, z, cond: z)
    torch.testing.assert_close(penalty(step), torch.full((3,), 10.0 * (3 - 1) ** 2))


def test_gradient_penalty_is_taken_between_real_and_fake_images() -> None:
    """A critic whose gradient at y is y: the norm tells where it was taken."""

    class Half(torch.nn.Module):
        def forward(self, img: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return img.flatten(1).square().sum(dim=1, keepdim=True) / 2

    networks = {"D": Half(), "G": torch.nn.Identity()}
    nothing = Condition.empty(500)
    step = Step(networks, torch.full((500, 1, 1, 1), 2.0), nothing, torch.full((500, 1, 1, 1), 4.0), nothing, identity)
    torch.manual_seed(0)
    penalty = wasserstein.GradientPenalty(1.0, generate=lambda step, z, cond: z)(step)
    norm = 1 + penalty.detach().sqrt()
    assert 2 <= float(norm.min()) < 2.1
    assert 3.9 < float(norm.max()) <= 4
    assert float(norm.mean()) == pytest.approx(3, abs=0.1)


def test_statistics_follow_a_fake_once_though_the_penalty_makes_it_again() -> None:
    plain, penalised = small_system(penalty="gp"), small_system(penalty="gp")
    plain.run(dataclasses.replace(plain.phases[0], terms=[wasserstein.Critic()]), [make_step(plain)])
    penalised.run(penalised.phases[0], [make_step(penalised)])
    for ours, theirs in zip(plain.networks["G"].buffers(), penalised.networks["G"].buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_each_way_has_its_optimiser_and_only_clipping_normalises_the_critic() -> None:
    clip, gp = small_system(), small_system(penalty="gp")
    assert {type(o) for o in clip.optimizers.values()} == {torch.optim.RMSprop}
    assert {type(o) for o in gp.optimizers.values()} == {torch.optim.Adam}
    assert [len(list(s.networks["D"].buffers())) > 0 for s in (clip, gp)] == [True, False]
    assert gp.phases[0].after is None


# Schedule


def published_turns(steps: int, usual: int, many: int) -> set[int]:
    """Critic steps after which the generator is trained, counted as the published loop goes."""
    turns: set[int] = set()
    step = generator_steps = 0
    while step < steps:
        step += many if generator_steps < 25 or generator_steps % 500 == 0 else usual
        turns.add(step - 1)
        generator_steps += 1
    return {turn for turn in turns if turn < steps}


@pytest.mark.parametrize(("usual", "many"), [(5, 100), (1, 3), (3, 1), (2, 2), (1, 1)])
def test_the_generator_has_its_turns_when_the_published_loop_has_them(usual: int, many: int) -> None:
    steps = 25 * many + 1800 * usual
    ours = {step for step in range(steps) if after_critic(step, usual, many)}
    assert ours == published_turns(steps, usual, many)


def test_the_schedule_is_that_of_the_phase() -> None:
    critic, generator = small_system(d_steps=2, critic_steps=3).phases
    assert all(critic.due(step) for step in range(100))
    assert [step for step in range(90) if generator.due(step)] == [*range(2, 75, 3), 76, 78, 80, 82, 84, 86, 88]


def test_many_critic_steps_are_for_clipping() -> None:
    for penalty, expected in (("clip", 100), ("gp", 7)):
        options = dataclasses.replace(SMALL, penalty=penalty, d_steps=7, critic_steps=None)
        assert WGAN.derive(options, 16, 8, 8)["critic_steps"][0] == expected


# Bad input


@pytest.mark.parametrize(
    ("changes", "resolution", "batch_gpu", "message"),
    [
        ({}, 256, 8, "--data has 256 x 256 images; DCGAN has layers for 8, 16, 32, 64, 128: convert them, or use --g-"),
        ({"d_net": "mlp"}, 256, 8, "--data has 256 x 256 images; DCGAN has layers"),
        ({"g_net": "mlp"}, 16, 1, "--batch-gpu=1: batch normalisation compares"),
        ({}, 16, 1, "--batch-gpu=1: batch normalisation compares the images of a round; expected at least 2"),
    ],
)
def test_what_can_not_work_is_refused(changes: dict[str, Any], resolution: int, batch_gpu: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        WGAN.check(dataclasses.replace(SMALL, **changes), resolution, batch_gpu)
    assert str(error.value).startswith(message)
    WGAN.check(dataclasses.replace(SMALL, g_net="mlp", d_net="mlp"), 256, 1)
    WGAN.check(dataclasses.replace(SMALL, g_net="mlp", penalty="gp"), 16, 1)  # such a critic has no such layers


def test_a_critic_is_nothing_that_augmentation_could_adapt_to() -> None:
    with pytest.raises(UserError, match="--aug=ada follows the sign of D"):
        resolve("wgan-tiny", {"aug": "ada"}, 16)
    assert resolve("wgan-tiny", {"aug": "fixed", "p": 0.2}, 16).augment.aug == "fixed"


def test_flags_that_can_not_work_are_refused_in_one_line(refused: Refused, patterns_zip: Path, tmp_path: Path) -> None:
    flags = ["--cfg=wgan-tiny", f"--data={patterns_zip}", f"--outdir={tmp_path}"]
    assert "--cond=class: wgan has no use for that; expected --cond=none" in refused(train.main, *flags, "--cond=class")
    assert "--clip=0.0: expected a number above 0" in refused(train.main, *flags, "--clip=0")
    assert "'gradient' is not one of clip, gp" in refused(train.main, *flags, "--penalty=gradient")
    assert "--deep is no option of wgan" in refused(train.main, *flags, "--deep")
