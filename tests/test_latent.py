"""LOGAN: the latent step, what is learned through it, and the uniform prior it needs."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refused, build_small

import train
from stylegan2_icgan.systems.logan import LOGAN, LOGANOptions
from training import loss
from training.augment import identity
from training.condition import Condition
from training.latent import LatentOptimisation, Optimised
from training.networks import dcgan
from training.networks.conditional_norm import Normaliser, standing_still
from training.networks.prior import UniformPrior
from training.randomness import seed_everything
from training.sampling import sample_images
from training.step import Step
from training.system import DataShape, System

SMALL = LOGANOptions(z_dim=6, ch=2, shared_dim=4, shared_dim_feat=4, attention="8", g_lr=2e-3, d_lr=2e-3)
EVERYTHING = LatentOptimisation(damping=0.1, share=1.0, cost=0.0)


class SmoothG(torch.nn.Module):
    """One pixel of tanh(Wz)."""

    z_dim, c_dim, h_dim, img_resolution, img_channels = 3, 0, 0, 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.5, -1.0, 0.8], dtype=torch.float64))

    def forward(self, z: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z.double() * self.weight)[:, :, None, None]


class SmoothD(torch.nn.Module):
    """A smooth function of three pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.3, 0.9, -0.6], dtype=torch.float64))

    def forward(self, img: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.sin(img.flatten(1) @ self.weight)[:, None] + img.flatten(1).square().sum(1, keepdim=True) / 2


def smooth_step(rows: int = 4) -> Step:
    torch.manual_seed(0)
    networks = {"G": UniformPrior(SmoothG()), "D": SmoothD()}
    nothing = Condition.empty(rows)
    return Step(networks, torch.zeros(rows, 3, 1, 1), nothing, 0.4 * torch.randn(rows, 3), nothing, identity)


def small_system(c_dim: int = 3, h_dim: int = 5, **changes: Any) -> System:
    shape = DataShape(img_resolution=16, img_channels=1, c_dim=c_dim, h_dim=h_dim)
    return build_small(LOGAN, dataclasses.replace(SMALL, **changes), shape)


def make_step(system: System, rows: int = 8) -> Step:
    seed_everything(1)
    G = system.networks["G"]
    c, h = torch.eye(3)[torch.arange(rows) % 3][:, : G.c_dim], torch.randn(rows, 5)[:, : G.h_dim]
    real, z = torch.randn(rows, 1, 16, 16).clamp(-1, 1), torch.randn(rows, G.z_dim)
    return Step(system.networks, real, Condition(c, h), z, Condition(c, h), identity)


def inner(step: Step) -> Step:
    return dataclasses.replace(step, networks={**step.networks, "G": step.G.generator})


# The step


@pytest.mark.parametrize("damping", [0.1, 5.0])
def test_natural_gradient_solves_the_damped_fisher_matrix(damping: float) -> None:
    """alpha g / (beta + |g|^2) = alpha (g g^T + beta I)^-1 g, for each row."""
    torch.manual_seed(0)
    gradient = 3 * torch.randn(5, 7, dtype=torch.float64)
    moved = LatentOptimisation(natural=True, rate=0.9, damping=damping).move(gradient)
    for g, delta in zip(gradient, moved, strict=True):
        fisher = torch.outer(g, g) + damping * torch.eye(7, dtype=torch.float64)
        torch.testing.assert_close(delta, 0.9 * torch.linalg.solve(fisher, g))


def test_plain_gradient_is_the_gradient() -> None:
    gradient = torch.randn(5, 7)
    torch.testing.assert_close(LatentOptimisation(natural=False, rate=0.3).move(gradient), 0.3 * gradient)


def test_a_step_raises_the_score_of_every_sample() -> None:
    step = inner(smooth_step())
    u = 0.5 * torch.randn(4, 3)
    moved = dataclasses.replace(EVERYTHING, rate=0.05)(step, u)
    assert (step.D(step.G(moved, None, None), None, None) > step.D(step.G(u, None, None), None, None)).all()


def test_samples_move_on_their_own() -> None:
    step = inner(smooth_step())
    u = 0.5 * torch.randn(4, 3)
    whole = EVERYTHING(step, u)
    first = dataclasses.replace(step, gen_cond=step.gen_cond[:1])
    torch.testing.assert_close(EVERYTHING(first, u[:1]), whole[:1])


def test_several_steps_are_several() -> None:
    step = inner(smooth_step())
    u = 0.3 * torch.randn(4, 3)
    by_hand = u
    for number in range(1, 4):
        by_hand = EVERYTHING(step, by_hand).detach()
        moved = dataclasses.replace(EVERYTHING, steps=number)(step, u)
        torch.testing.assert_close(moved, by_hand)
    assert ((moved - EVERYTHING(step, u)).abs().amax(dim=1) > 1e-3).all()


def test_latents_stay_in_the_range_of_the_prior() -> None:
    step = inner(smooth_step())
    u = torch.rand(4, 3) * 2 - 1
    moved = LatentOptimisation(natural=False, rate=100.0, share=1.0)(step, u)
    assert moved.abs().max() == 1
    assert dataclasses.replace(EVERYTHING, rate=0.0)(step, u).equal(u)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 0.4, 0.6), (1.0, 1, 1)])
def test_a_share_of_the_elements_moves_and_the_others_have_no_part(share: float, low: float, high: float) -> None:
    step = inner(smooth_step(100))
    u = 0.8 * (2 * torch.rand(100, 3) - 1)
    torch.manual_seed(0)
    moved = dataclasses.replace(EVERYTHING, share=share)(step, u)
    changed = moved != u
    assert low <= float(changed.float().mean()) <= high
    alone = changed.sum(dim=1) == 1  # |g|^2 is that of the one element
    start = u.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(step.D(step.G(start, None, None), None, None).sum(), start)
    expected = u + 0.9 * gradient / (0.1 + gradient.square())
    torch.testing.assert_close(moved[alone][changed[alone]], expected[alone][changed[alone]].clamp(-1, 1))


# What is learned through it


@pytest.mark.parametrize("latent", [EVERYTHING, dataclasses.replace(EVERYTHING, steps=2, cost=0.7)])
@pytest.mark.parametrize(("trains", "term"), [("D", loss.DHingeFake()), ("G", loss.GHinge())])
def test_both_networks_learn_through_the_step(trains: str, term: Any, latent: LatentOptimisation) -> None:
    """The gradient equals that by finite differences of the whole, the step included; and not that without the step."""
    step = smooth_step()
    optimised = Optimised(term, latent)
    for name, network in step.networks.items():
        network.requires_grad_(name == trains)
    (weight,) = step.networks[trains].parameters()
    optimised(step).mean().backward()
    assert weight.grad is not None
    assert all(p.grad is None for name, net in step.networks.items() if name != trains for p in net.parameters())

    numeric, size = torch.zeros_like(weight), 1e-3
    for i in range(3):
        for sign in (1, -1):
            with torch.no_grad():
                weight[i] += sign * size
            numeric[i] += sign * float(optimised(step).mean().detach()) / (2 * size)
            with torch.no_grad():
                weight[i] -= sign * size
    torch.testing.assert_close(weight.grad, numeric, rtol=2e-3, atol=2e-4)  # the latents are float32

    moved = latent(inner(step), step.G.latent(step.z)).detach()
    (held,) = torch.autograd.grad(term(dataclasses.replace(inner(step), z=moved)).mean(), weight)
    assert (weight.grad - held).norm() > 0.01 * held.norm()


def test_transport_costs_what_was_moved() -> None:
    step = smooth_step()
    torch.manual_seed(0)
    free = Optimised(loss.GHinge(), EVERYTHING)(step)
    torch.manual_seed(0)
    dear = Optimised(loss.GHinge(), dataclasses.replace(EVERYTHING, cost=30.0))(step)
    u = step.G.latent(step.z)
    distance = (EVERYTHING(inner(step), u) - u).square().sum(dim=1)
    torch.testing.assert_close(dear - free, 30.0 * distance.double())


@pytest.mark.parametrize("backbone", ["biggan", "dcgan"])
def test_statistics_follow_one_pass_at_the_noise_that_was_drawn(backbone: str) -> None:
    systems = [small_system(0, 0, backbone=backbone, latent_steps=2, d_steps=1) for _ in range(2)]
    step = make_step(systems[0])
    Optimised(loss.GHinge(), LatentOptimisation(steps=2))(step)
    G = systems[1].networks["G"]
    G(step.z, step.gen_cond.c, step.gen_cond.h)
    layers = [[m for m in s.networks["G"].modules() if isinstance(m, Normaliser)] for s in systems]
    assert layers[0]
    for ours, theirs in zip(*layers, strict=True):
        torch.testing.assert_close(ours.stored_mean, theirs.stored_mean)
        torch.testing.assert_close(ours.stored_var, theirs.stored_var)
        assert ours.momentum == theirs.momentum == 0.1


def test_statistics_stand_still_also_after_an_error() -> None:
    G = dcgan.Generator(4, 8, 1, ch=2)
    before = [buffer.clone() for buffer in G.buffers()]
    expected = copy.deepcopy(G)(torch.ones(2, 4))
    with pytest.raises(ZeroDivisionError), standing_still(G):
        torch.testing.assert_close(G(torch.ones(2, 4)), expected)
        _ = 1 / 0
    assert all(torch.equal(now, then) for now, then in zip(G.buffers(), before, strict=True))
    G(torch.randn(2, 4))
    assert not all(torch.equal(now, then) for now, then in zip(G.buffers(), before, strict=True))


@pytest.mark.parametrize("changes", [{}, {"deep": True}, {"backbone": "dcgan", "slope": 0.0}])
def test_every_parameter_learns_in_its_phase(changes: dict[str, Any]) -> None:
    dims = (0, 0) if "backbone" in changes else (3, 5)
    system = small_system(*dims, d_steps=1, latent_cost=1.0, **changes)
    seen: dict[str, set[str]] = {name: set() for name in system.networks}
    for _ in range(3):  # attention starts at 0, and what leads to it learns once it is not
        for phase in system.phases:
            system.run(phase, [make_step(system)])
            network = system.networks[phase.trains]
            seen[phase.trains] |= {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    for name, network in system.networks.items():
        assert {key for key, _ in network.named_parameters()} == seen[name], name
        assert all(p.isfinite().all() for p in network.parameters())


# The prior


def test_the_noise_of_the_generator_is_uniform() -> None:
    """u = 2 Phi(z) - 1: its quantiles are those of U(-1, 1), whatever z ~ N(0, 1) was."""
    torch.manual_seed(0)
    prior = UniformPrior(dcgan.Generator(1, 8, 1, ch=1))
    u = prior.latent(torch.randn(20_000, 1)).flatten().sort().values
    assert (u - torch.linspace(-1, 1, len(u))).abs().max() < 0.03
    assert prior.latent(torch.zeros(1, 1)).item() == 0
    z = torch.linspace(-3, 3, 7)[:, None]
    torch.testing.assert_close(prior.latent(z), 2 * torch.special.ndtr(z) - 1)
    with pytest.raises(ValueError, match=r"z: expected noise \[N, 1\]"):
        prior.latent(torch.zeros(2, 3))


def test_scripts_sample_it_as_any_other_generator() -> None:
    torch.manual_seed(0)
    prior = UniformPrior(dcgan.Generator(4, 8, 1, ch=2)).eval()
    z = torch.randn(3, 4)
    assert (prior.z_dim, prior.c_dim, prior.h_dim, prior.num_ws) == (4, 0, 0, 0)
    assert (prior.img_resolution, prior.img_channels) == (8, 1)
    torch.testing.assert_close(prior(z), prior.generator(prior.latent(z)))
    half: Callable[[torch.Tensor], torch.Tensor] = lambda z: prior.generator(prior.latent(z) * 0.5)  # noqa: E731
    torch.testing.assert_close(prior(z, truncation_psi=0.5), half(z))
    assert sample_images(prior, z, Condition.empty(3), truncation_psi=0.5).shape == (3, 1, 8, 8)


# Options and bad input


def test_rectifiers_leak_in_both_networks() -> None:
    """A slope of 1 makes the discriminator linear, but for its sum over pixels."""
    system = small_system(slope=1.0, attention="0")
    D = system.networks["D"].eval()
    a, b = torch.randn(2, 2, 1, 16, 16)
    torch.testing.assert_close(D.features(a) + D.features(b), D.features(a + b) + D.features(torch.zeros_like(a)))
    slopes = {m.slope for net in system.networks.values() for m in net.modules() if hasattr(m, "slope")}
    assert slopes == {1.0}
    assert not any(isinstance(module, torch.nn.ReLU) for module in system.networks["G"].modules())


def test_flags_that_can_not_work_are_refused_in_one_line(refused: Refused, patterns_zip: Path, tmp_path: Path) -> None:
    flags = ["--cfg=logan-tiny", f"--data={patterns_zip}", f"--outdir={tmp_path}", "--attention=0"]
    assert "--cond=class: logan has no use for that; expected --cond=none" in refused(
        train.main, *flags, "--backbone=dcgan", "--cond=class"
    )
    assert "--latent-steps=0: expected at least 1" in refused(train.main, *flags, "--latent-steps=0")
    assert "--latent-damping=0.0: expected a number above 0" in refused(train.main, *flags, "--latent-damping=0")
    assert "--latent-share=2.0: expected 0 to 1" in refused(train.main, *flags, "--latent-share=2")
    assert "--batch-gpu=1: batch normalisation" in refused(train.main, *flags, "--batch-gpu=1", "--backbone=dcgan")
    assert "--attention=64" in refused(train.main, *flags, "--attention=64")
