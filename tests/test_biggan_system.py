"""The BigGAN family as a system: its losses, its phases, a tiny run, and what it refuses."""

import copy
import dataclasses
from typing import Any

import pytest
import torch

from stylegan2_icgan.biggan_family import resolutions
from stylegan2_icgan.systems.biggan import BIGGAN, BigGANOptions
from torch_utils.command_line import UserError
from training import loss
from training.augment import identity
from training.condition import Condition
from training.config import check_bounds
from training.ema import Ema
from training.networks.spectral_norm import Embedding, SNEmbedding, SNLinear, initialise
from training.randomness import seed_everything
from training.step import Step
from training.system import DataShape, System

SMALL = BigGANOptions(z_dim=6, ch=2, shared_dim=4, shared_dim_feat=4, attention="8", g_lr=2e-3, d_lr=8e-3)
MEMBERS = {
    "biggan": {},
    "biggan-deep": {"deep": True},
    "sagan": {"shared": False, "hier": False, "init": "xavier", "d_steps": 1},
}
CONDITIONS = [(0, 0), (3, 0), (0, 5), (3, 5)]


def small_system(c_dim: int = 3, h_dim: int = 5, resolution: int = 16, **changes: Any) -> System:
    options = dataclasses.replace(SMALL, **changes)
    BIGGAN.check(options, resolution, 8)
    seed_everything(0)
    shape = DataShape(img_resolution=resolution, img_channels=1, c_dim=c_dim, h_dim=h_dim)
    return BIGGAN.build(options, {name: make(options, shape) for name, make in BIGGAN.networks.items()})


def make_step(system: System, number: int = 0, rows: int = 8) -> Step:
    """Grey images, dark to bright by class, with noise; features and noise at random."""
    G = system.networks["G"]
    seed_everything(1, number)
    label = torch.randint(3, (rows,))
    side = G.img_resolution
    real = (label[:, None, None, None] - 1) * 0.8 + 0.1 * torch.randn(rows, 1, side, side)
    c, h = torch.eye(3)[label][:, : G.c_dim], torch.nn.functional.normalize(torch.randn(rows, 5))[:, : G.h_dim]
    shuffled = torch.randperm(rows)
    z = torch.randn(rows, G.z_dim)
    return Step(system.networks, real.clamp(-1, 1), Condition(c, h), z, Condition(c, h)[shuffled], identity)


def train(system: System, first: int, last: int) -> None:
    for number in range(first, last):
        for phase in system.phases:
            if number % phase.interval == 0:
                system.run(phase, [make_step(system, number)])


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in network.state_dict().values()])


# Losses


def test_hinge_terms_equal_their_formulas() -> None:
    system = small_system()
    for network in system.networks.values():
        network.eval()  # so that a second pass gives the same
    step = make_step(system)
    fake = step.G(step.z, step.gen_cond.c, step.gen_cond.h)
    on_fake = step.D(fake, step.gen_cond.c, step.gen_cond.h)[:, 0]
    on_real = step.D(step.real, step.real_cond.c, step.real_cond.h)[:, 0]
    torch.testing.assert_close(loss.GHinge()(step), -on_fake)
    torch.testing.assert_close(loss.DHingeFake()(step), (1 + on_fake).clamp_min(0))
    torch.testing.assert_close(loss.d_hinge_real(step), (1 - on_real).clamp_min(0))
    assert loss.DHingeFake()(step).shape == (8,)


def test_hinge_ends_at_the_margin() -> None:
    class Scores(torch.nn.Module):
        def forward(self, img: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return img[:, :, 0, 0]

    scores = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])[:, None, None, None]
    networks = {"D": Scores(), "G": torch.nn.Identity()}
    step = Step(networks, scores, Condition.empty(5), scores, Condition.empty(5), identity)
    fakes = loss.DHingeFake(lambda step, z, cond: z)
    assert loss.d_hinge_real(step).tolist() == [3, 2, 1, 0, 0]
    assert fakes(step).tolist() == [0, 0, 1, 2, 3]
    assert loss.GHinge(lambda step, z, cond: z)(step).tolist() == [2, 1, 0, -1, -2]


def test_gradient_penalties_work_on_the_discriminator() -> None:
    """R1 differentiates twice, through attention and spectral norms."""
    system = small_system()
    D = system.networks["D"]
    penalty = loss.R1(gamma=2.0)(make_step(system))
    assert penalty.shape == (8,)
    penalty.mean().backward()
    assert D.blocks[0][0].conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in D.parameters())


def test_orthogonal_regularisation_has_the_published_gradient() -> None:
    network = torch.nn.ModuleDict({"linear": SNLinear(4, 3), "embed": SNEmbedding(3, 4), "shared": Embedding(3, 4)})
    initialise(network, "xavier")
    step = Step({"D": network}, torch.zeros(2, 1), Condition.empty(2), torch.zeros(2, 1), Condition.empty(2), identity)
    term = loss.OrthogonalRegularization("D", weight=0.1)
    term(step).mean().backward()
    w = network["linear"].weight
    expected = 2 * 0.1 * ((w @ w.t()) * (1 - torch.eye(3))) @ w
    torch.testing.assert_close(w.grad, expected)
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["linear.weight"]
    initialise(network, "ortho")
    assert term(step).item() == pytest.approx(0, abs=1e-10)


# Training


@pytest.mark.parametrize(("c_dim", "h_dim"), CONDITIONS)
@pytest.mark.parametrize("member", MEMBERS)
def test_every_parameter_learns(member: str, c_dim: int, h_dim: int) -> None:
    system = small_system(c_dim, h_dim, ch=4, **MEMBERS[member])
    seen: dict[str, set[str]] = {name: set() for name in system.networks}
    for number in range(4):  # attention starts at 0, and what leads to it learns once it is not
        for phase in system.phases:
            system.run(phase, [make_step(system, number)])
            network = system.networks[phase.trains]
            seen[phase.trains] |= {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    for name, network in system.networks.items():
        assert {key for key, _ in network.named_parameters()} == seen[name], name
        assert weights(network).isfinite().all()


@pytest.mark.parametrize("member", MEMBERS)
def test_a_run_repeats_itself_and_continues_bit_for_bit(member: str) -> None:
    whole, parts = (small_system(**MEMBERS[member]) for _ in range(2))
    train(whole, 0, 6)
    train(parts, 0, 3)
    resumed = small_system(**MEMBERS[member])
    for name, saved in copy.deepcopy({k: v.state_dict() for k, v in parts.stateful().items()}).items():
        resumed.stateful()[name].load_state_dict(saved)
    train(resumed, 3, 6)
    for name, network in whole.networks.items():
        assert torch.equal(weights(network), weights(resumed.networks[name])), name


def test_a_phase_trains_one_network_and_the_generator_less_often() -> None:
    system = small_system(d_steps=3)
    assert [(phase.name, phase.trains, phase.interval, phase.gain) for phase in system.phases] == [
        ("D", "D", 1, 1.0),
        ("G", "G", 3, 1.0),
    ]
    for phase in system.phases:
        before = {name: [p.clone() for p in network.parameters()] for name, network in system.networks.items()}
        system.run(phase, [make_step(system)])
        for name, network in system.networks.items():
            same = all(torch.equal(p, q) for p, q in zip(network.parameters(), before[name], strict=True))
            assert same == (name != phase.trains)


def test_each_network_has_a_learning_rate_of_its_own() -> None:
    system = small_system(g_lr=1e-4, d_lr=4e-4, adam_eps=1e-7)
    for name, rate in (("G", 1e-4), ("D", 4e-4)):
        group = system.optimizers[name].param_groups[0]
        assert (group["lr"], group["betas"], group["eps"]) == (rate, (0.0, 0.999), 1e-7)


def test_accumulated_rounds_are_averaged() -> None:
    """The discriminator's gradients of one round of 8 and of four of 2 agree, with the spectral norms converged."""
    gradients = []
    for size in (8, 2):
        system = small_system()
        step = make_step(system)
        with torch.no_grad():
            for _ in range(50):
                step.D(step.real, step.real_cond.c, step.real_cond.h)
        system.networks["G"].eval()  # batch normalisation sees one round at a time
        parts = zip(*(x.split(size) for x in (step.real, step.real_cond, step.z, step.gen_cond)), strict=True)
        system.run(system.phases[0], [Step(system.networks, *part, identity) for part in parts])
        gradients.append(torch.cat([p.grad.flatten() for p in system.networks["D"].parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("member", "d_steps", "steps"),
    [
        ("biggan", 1, 60),
        pytest.param("biggan", 2, 160, marks=pytest.mark.slow),
        pytest.param("biggan-deep", 1, 150, marks=pytest.mark.slow),
        pytest.param("sagan", 1, 150, marks=pytest.mark.slow),
    ],
)
def test_it_learns_the_brightness_of_each_class(member: str, d_steps: int, steps: int) -> None:
    """Classes at -0.8, 0 and 0.8 are told apart by the averaged generator, in eval mode, with running statistics."""
    options = {"ch": 8, "attention": "0", "g_lr": 2e-3, "d_lr": 2e-3} | MEMBERS[member] | {"d_steps": d_steps}
    system = small_system(h_dim=0, resolution=8, **options)
    ema = Ema(system.networks["G"], halflife_kimg=0.1, rampup=None)
    for number in range(steps):
        train(system, number, number + 1)
        ema.update(system.networks["G"], 8 * number, 8)
    z, c = torch.randn(30, system.networks["G"].z_dim), torch.eye(3).repeat_interleave(10, dim=0)
    with torch.no_grad():
        dark, grey, bright = ema.average(z, c).mean(dim=[1, 2, 3]).unflatten(0, (3, 10)).mean(dim=1).tolist()
    assert dark < -0.4 < grey < 0.4 < bright


# Options


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(BigGANOptions) if f.name != "bn_across"])
def test_every_option_changes_the_run(field: str) -> None:
    """But for `bn_across`, which needs several processes: tests/test_biggan_processes.py."""
    changed = {
        "deep": True,
        "hier": False,
        "shared": False,
        "attention": "0",
        "init": "normal",
        "sn_eps": 10.0,
        "ortho_weight": 0.1,
        "d_steps": 1,
    }
    base = {"hier": False, "h_dim": 0} if field == "shared" else {}
    value = changed.get(field, getattr(SMALL, field) * 2)
    systems = small_system(**base), small_system(**base | {field: value})
    for system in systems:
        train(system, 0, 2)
    assert any(
        len(before) != len(after) or not torch.equal(before, after)
        for before, after in ([weights(system.networks[name]) for system in systems] for name in ("G", "D"))
    )


@pytest.mark.parametrize(
    ("resolution", "expected"), [(16, "0"), (32, "0"), (64, "32"), (128, "64"), (256, "64"), (512, "64")]
)
def test_attention_by_default_is_where_it_was_published(resolution: int, expected: str) -> None:
    value, why = BIGGAN.derive(BigGANOptions(), resolution, 32, 32)["attention"]
    assert value == expected
    assert why
    BIGGAN.check(dataclasses.replace(BigGANOptions(), attention=value), resolution, 32)


def test_lists_of_resolutions() -> None:
    assert resolutions("32,64") == (32, 64)
    assert resolutions("0") == resolutions(None) == ()
    for words in ("a", "32;64", "32,"):
        with pytest.raises(UserError, match=f"--attention={words}: expected resolutions such as 32,64"):
            resolutions(words)


@pytest.mark.parametrize(
    ("changes", "resolution", "batch_gpu", "message"),
    [
        ({}, 24, 8, "--data has 24 x 24 images; BigGAN has layers for 8, 16, 32, 64, 128, 256, 512: convert them"),
        ({"attention": "16"}, 16, 8, "--attention=16: 16 is no resolution of both networks; there is 8"),
        ({"attention": "8"}, 8, 8, "--attention=8: 8 is no resolution of both networks; there is none"),
        ({"attention": "two"}, 16, 8, "--attention=two: expected resolutions"),
        ({"shared": False}, 16, 8, "--hier --no-shared: z can only join a shared embedding; expected --no-hier"),
        ({"z_dim": 2}, 16, 8, "--z-dim=2: expected at least 3, one for each of the chunks of --hier"),
        ({"z_dim": 0, "deep": True}, 16, 8, "--z-dim=0: expected 1 to 8192"),
        ({}, 16, 1, "--batch-gpu=1: batch normalisation compares the images of a round; expected at least 2"),
        ({"ch": 0}, 16, 8, "--ch=0: expected 1 to 1024"),
        ({"d_steps": 0}, 16, 8, "--d-steps=0: expected at least 1"),
        ({"g_lr": float("nan")}, 16, 8, "--g-lr=nan: expected 0 or more"),
        ({"d_lr": float("inf")}, 16, 8, "--d-lr=inf: expected 0 or more"),
        ({"bn_momentum": 2.0}, 16, 8, "--bn-momentum=2.0: expected 1e-06 to 1"),
        ({"ortho_weight": -1.0}, 16, 8, "--ortho-weight=-1.0: expected 0 or more"),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(
    changes: dict[str, Any], resolution: int, batch_gpu: int, message: str
) -> None:
    options = dataclasses.replace(BigGANOptions(attention="0"), **changes)
    with pytest.raises(UserError) as error:
        check_bounds(options)
        BIGGAN.check(options, resolution, batch_gpu)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
