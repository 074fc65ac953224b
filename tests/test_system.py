import copy

import pytest
import torch

from stylegan2_icgan.models import make_system
from stylegan2_icgan.options import resolve
from torch_utils import training_stats
from training import loss
from training.augment import identity, random_mirror
from training.checkpoint import Recipe
from training.condition import Condition
from training.ema import Ema
from training.step import Step
from training.system import DataShape, Phase, System, lazy_adam

SHAPE = DataShape(img_resolution=8, img_channels=1, c_dim=3, h_dim=5)
SMALL = {"z_dim": 6, "w_dim": 6, "map_layers": 2, "channel_base": 64, "channel_max": 8, "batch": 8, "style_mixing": 0.9}


def small_system(shape: DataShape = SHAPE, **flags: float | str) -> System:
    options = resolve("tiny", SMALL | flags, shape.img_resolution)
    return make_system(Recipe("stylegan2", options.json()["model"], shape, {}), seed=0)


def make_step(system: System, rows: int = 8) -> Step:
    torch.manual_seed(1)
    real, z = torch.randn(rows, 1, 8, 8), torch.randn(rows, 6)
    c, h = torch.eye(3)[torch.arange(rows) % 3], torch.randn(rows, 5)
    return Step(system.networks, real, Condition(c, h), z, Condition(c.flip(0), h.flip(0)), identity)


def split(step: Step, size: int) -> list[Step]:
    parts = zip(
        step.real.split(size), step.real_cond.split(size), step.z.split(size), step.gen_cond.split(size), strict=True
    )
    return [Step(step.networks, *part, step.augment) for part in parts]


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_a_phase_moves_only_the_network_it_trains() -> None:
    system = small_system(pl_weight=2.0)
    assert [phase.name for phase in system.phases] == ["Gmain", "Greg", "Dmain", "Dreg"]
    for phase in system.phases:
        before = {name: weights(network).clone() for name, network in system.networks.items()}
        system.run(phase, [make_step(system)])
        for name, network in system.networks.items():
            assert torch.equal(weights(network), before[name]) == (name != phase.trains), (phase.name, name)


def test_every_parameter_gets_a_gradient_somewhere() -> None:
    system = small_system(pl_weight=2.0)
    system.run(system.phases[0], [make_step(system)])  # noise strengths start at 0 and still learn
    missing = set()
    for name, network in system.networks.items():
        seen = set()
        for phase in system.phases:
            if phase.trains == name:
                system.run(phase, [make_step(system)])
                seen |= {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        missing |= {f"{name}.{key}" for key, _ in network.named_parameters() if key not in seen}
    assert not missing


@pytest.mark.parametrize("phase", ["Gmain", "Dmain", "Dreg"])
def test_accumulated_rounds_are_averaged(phase: str) -> None:
    """One round of 8 and four of 2 give the same gradient; published code summed, which Adam hides."""
    gradients = []
    for size in (8, 2):
        system = small_system(style_mixing=0.0, mbstd_group=1)
        system.run(next(p for p in system.phases if p.name == phase), split(make_step(system), size))
        learnt = [  # the noise itself is drawn anew in every round; its strength starts at 0
            p.grad.flatten()
            for key, p in system.networks[phase[0]].named_parameters()
            if p.grad is not None and not key.endswith("noise_strength")
        ]
        gradients.append(torch.cat(learnt))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_gain_and_interval_of_lazy_regularisers() -> None:
    phases = {phase.name: phase for phase in small_system(pl_weight=2.0).phases}
    assert (phases["Gmain"].interval, phases["Gmain"].gain) == (1, 1)
    assert (phases["Greg"].interval, phases["Greg"].gain) == (4, 4)
    assert (phases["Dreg"].interval, phases["Dreg"].gain) == (16, 16)
    assert "Greg" not in {phase.name for phase in small_system(pl_weight=0.0).phases}
    assert "Dreg" not in {phase.name for phase in small_system(gamma=0.0).phases}


def test_lazy_adam_corrects_rate_and_betas() -> None:
    group = lazy_adam(torch.nn.Linear(1, 1), 0.0025, (0.0, 0.99), reg_interval=16).param_groups[0]
    assert group["lr"] == pytest.approx(0.0025 * 16 / 17)
    assert group["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert lazy_adam(torch.nn.Linear(1, 1), 0.0025, (0.0, 0.99)).param_groups[0]["lr"] == 0.0025


def test_a_phase_without_its_network_is_refused() -> None:
    network = torch.nn.Linear(1, 1)
    optimizer = lazy_adam(network, 0.1, (0.0, 0.99))
    with pytest.raises(ValueError, match="phase X trains Q"):
        System({"G": network}, [Phase("X", trains="Q", terms=[])], {"G": optimizer})
    with pytest.raises(ValueError, match="interval 0"):
        System({"G": network}, [Phase("X", trains="G", terms=[], interval=0)], {"G": optimizer})


def test_r1_of_a_linear_discriminator_is_its_squared_weight() -> None:
    class Linear(torch.nn.Module):
        weight = torch.tensor([1.0, 2.0, -2.0, 4.0])

        def forward(self, img: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return img.flatten(1) @ self.weight[:, None]

    nothing = Condition.empty(3)
    step = Step({"D": Linear()}, torch.randn(3, 1, 2, 2), nothing, torch.zeros(3, 1), nothing, identity)
    torch.testing.assert_close(loss.R1(gamma=4.0)(step), torch.full((3,), 2 * 25.0))


def test_path_length_follows_its_mean_and_remembers_it() -> None:
    system = small_system(pl_weight=2.0)
    term = system.state["path_length"]
    assert isinstance(term, loss.PathLength)
    penalty = term(make_step(system))
    assert penalty.shape == (4,)  # half the batch
    term.settle(system.networks["G"])
    first = term.mean.clone()
    assert first > 0
    other = loss.PathLength(loss.StyleMixing(), weight=2.0)
    other.load_state_dict(term.state_dict())
    term(make_step(system))
    term.settle(system.networks["G"])
    assert torch.equal(other.mean, first)
    assert not torch.equal(term.mean, first)


def test_logistic_terms_equal_their_formulas() -> None:
    system = small_system(style_mixing=0.0)
    step = make_step(system)
    fake = system.networks["G"](step.z, step.gen_cond.c, step.gen_cond.h)  # noise strengths are 0
    on_fake = system.networks["D"](fake, step.gen_cond.c, step.gen_cond.h).squeeze(1)
    on_real = system.networks["D"](step.real, step.real_cond.c, step.real_cond.h).squeeze(1)
    generate = loss.StyleMixing()
    torch.testing.assert_close(loss.GNonSaturating(generate)(step), -torch.sigmoid(on_fake).log())
    torch.testing.assert_close(loss.DLogisticFake(generate)(step), -(1 - torch.sigmoid(on_fake)).log())
    torch.testing.assert_close(loss.d_logistic_real(step), -torch.sigmoid(on_real).log())


def test_style_mixing_takes_later_layers_from_a_second_z() -> None:
    system = small_system()
    step = make_step(system)
    torch.manual_seed(0)
    always = loss.StyleMixing(prob=1.0).styles(step, step.z, step.gen_cond)
    own = loss.StyleMixing(prob=0.0).styles(step, step.z, step.gen_cond)
    same = (always == own).flatten(2).all(dim=2).all(dim=0).tolist()
    assert same == sorted(same, reverse=True)  # own layers first
    assert same[0]
    assert not same[-1]


def test_random_mirror_flips_half_of_the_images() -> None:
    torch.manual_seed(0)
    images = torch.randn(200, 1, 4, 4)
    shown = random_mirror(images)
    kept, flipped = (shown == images).flatten(1).all(1), (shown == images.flip(3)).flatten(1).all(1)
    assert (kept ^ flipped).all()
    assert 70 < int(flipped.sum()) < 130


def test_ema_halves_the_distance_every_halflife() -> None:
    network = torch.nn.Linear(2, 2)
    network.register_buffer("count", torch.zeros(()))
    ema = Ema(network, halflife_kimg=1.0, rampup=None)
    start = copy.deepcopy(ema.average)
    with torch.no_grad():
        network.weight += 1
        network.count += 5  # type: ignore[operator]
    for _ in range(10):
        ema.update(network, cur_nimg=10_000, batch=100)
    torch.testing.assert_close(ema.average.weight, start.weight + 0.5)
    assert ema.average.count == 5
    ema.update(network, cur_nimg=0, batch=100)
    young = Ema(network, halflife_kimg=1.0, rampup=0.05)
    with torch.no_grad():
        network.weight += 1
    young.update(network, cur_nimg=2000, batch=100)  # half-life 100 images: half-way in one step
    torch.testing.assert_close(young.average.weight, network.weight - 0.5)


def test_logits_have_a_histogram() -> None:
    collector = training_stats.Collector()
    name = training_stats.LOGITS + "real"
    for values in ([0.1, -0.1, 0.1, float("nan")], [5.0, 1e9, -1e9]):
        training_stats.report(name, torch.tensor(values))
    found = collector.collect()[name]
    assert found["num"] == sum(found["histogram"]) == 6
    edges = training_stats.EDGES
    counts = {i: count for i, count in enumerate(found["histogram"]) if count}
    assert [count for _, count in sorted(counts.items())] == [1, 1, 2, 1, 1]
    assert (min(counts), max(counts)) == (0, len(edges) - 2)
    assert all(any(edges[i] <= value < edges[i + 1] for i in counts) for value in (0.1, -0.1, 5.0))
    collector.load_state_dict({name: torch.ones(3)})  # of a run of before there were any
    training_stats.report(name, 1.0)
    training_stats.report("Loss/G/loss", 1.0)
    after = collector.collect()
    assert (sum(after[name]["histogram"]), "histogram" in after["Loss/G/loss"]) == (1, False)


def test_statistics_are_means_since_the_last_reading() -> None:
    collector = training_stats.Collector()
    training_stats.report("a", torch.tensor([1.0, 2.0]))
    training_stats.report("a", 6.0)
    kept = collector.state_dict()
    first = collector.collect()
    assert first["a"]["num"] == 3
    assert first["a"]["mean"] == pytest.approx(3.0)
    assert first["a"]["std"] == pytest.approx((14 / 3) ** 0.5)
    assert collector.collect() == {}
    collector.load_state_dict(kept)
    training_stats.report("a", 3.0)
    assert collector.collect()["a"]["num"] == 4


def test_average_starts_as_a_copy_and_can_average_running_statistics() -> None:
    network = torch.nn.BatchNorm1d(2)
    late = Ema(network, halflife_kimg=0.008, rampup=None, start_kimg=0.016, average_buffers=True)
    copied = Ema(network, halflife_kimg=0.008, rampup=None)
    for cur_nimg, (value, weight, mean) in {8: (4.0, 4.0, 4.0), 16: (2.0, 2.0, 2.0), 24: (6.0, 4.0, 4.0)}.items():
        with torch.no_grad():
            network.weight.fill_(value)
            network.running_mean.fill_(value)
            network.num_batches_tracked += 1
        late.update(network, cur_nimg, 8)
        copied.update(network, cur_nimg, 8)
        assert late.average.weight.tolist() == pytest.approx([weight] * 2)
        assert late.average.running_mean.tolist() == pytest.approx([mean] * 2)
        assert copied.average.running_mean.tolist() == [value] * 2
    assert late.average.num_batches_tracked == network.num_batches_tracked


@pytest.mark.parametrize(
    ("flags", "low"),
    [
        ({}, []),
        ({"precision": "fp32"}, []),
        ({"precision": "bf16"}, [8, 16]),  # all but the lowest
        ({"low_dtype": "bf16", "num_fp16_res": 1}, [16]),
        ({"precision": "fp16"}, []),  # for CUDA alone
    ],
)
def test_flags_of_precision_reach_the_layers_of_both_networks(flags: dict[str, float | str], low: list[int]) -> None:
    system = small_system(DataShape(16, 1, 0, 0), **flags)
    for network in (system.networks["G"].synthesis, system.networks["D"]):
        seen: dict[int, torch.dtype] = {}
        for resolution in (8, 16):
            layer = network.get_submodule(f"b{resolution}.conv1")
            layer.register_forward_hook(lambda *args, at=resolution, seen=seen: seen.update({at: args[2].dtype}))
        system.networks["D"](system.networks["G"](torch.randn(4, 6)))
        assert seen == {at: torch.bfloat16 if at in low else torch.float32 for at in (8, 16)}
