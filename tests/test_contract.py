"""What every GAN system keeps to, whatever its networks and losses are. A new system gets a row in TINY."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BIGGAN, TINY_MODEL, Refused, invoke

import generate
import train
from stylegan2_icgan.models import load_model, make_system
from stylegan2_icgan.options import SHARED, resolve
from stylegan2_icgan.systems import PAIRED, SYSTEMS
from training.augment import identity
from training.checkpoint import Recipe, read_state
from training.condition import Condition
from training.randomness import seed_everything
from training.step import Step
from training.system import DataShape, Phase, System

# Flags that make a system as small as it gets, for 8x8 images; nothing but the model in them.
TINY: dict[str, Sequence[str]] = {
    "stylegan2": ["--cfg=tiny", *TINY_MODEL, "--mbstd-group=1", "--pl-weight=0"],
    "biggan": TINY_BIGGAN,
    "biggan: deep": ["--cfg=biggan-deep-tiny", *TINY_BIGGAN[1:]],
    "biggan: sagan": ["--cfg=sagan-tiny", *TINY_BIGGAN[1:]],
    "adc": ["--cfg=adc-tiny", *TINY_BIGGAN[1:]],
    "csgan": ["--cfg=csgan-tiny", "--ch=2", "--blocks=1", "--patch-layers=1"],
    "logan": ["--cfg=logan-tiny", *TINY_BIGGAN[1:]],
    "selfcond": ["--cfg=selfcond-tiny", "--z-dim=8", "--ch=2", "--embed-dim=4"],
    "unet": ["--cfg=unet-tiny", "--z-dim=8", "--ch=1", "--shared-dim-feat=4", "--cutmix-warmup=0"],
    "wgan": ["--cfg=wgan-tiny", "--z-dim=8", "--ch=2", "--d-steps=1", "--critic-steps=1"],
}
ALL = {"none": (0, 0), "class": (3, 0), "instance": (0, 5), "instance+class": (3, 5)}  # --cond -> c_dim, h_dim
CONDITIONS = {"adc": ("class", "instance+class"), "csgan": ("none",), "wgan": ("none",)}  # the others: all
CASES = [(system, cond) for system in TINY for cond in CONDITIONS.get(system, ALL)]
OF_NOISE = [(system, cond) for system, cond in CASES if system not in PAIRED]
ROWS, SIDE = 8, 8


def kind(system: str) -> str:
    """Of one member of a family, the system."""
    return system.partition(":")[0]


def tiny_system(system: str, cond: str = "none") -> System:
    flags = train.main.make_context("train", [*TINY[system]]).params
    groups = (*SHARED.values(), SYSTEMS[kind(system)].options)
    names = {field.name for cls in groups for field in dataclasses.fields(cls)}
    options = resolve(
        flags["cfg"], {name: flags[name] for name in names} | {"cond": cond, "batch": ROWS}, resolution=SIDE
    )
    c_dim, h_dim = ALL[cond]
    shape = DataShape(img_resolution=SIDE, img_channels=1, c_dim=c_dim, h_dim=h_dim)
    return make_system(Recipe(kind(system), options.json()["model"], shape, {}), seed=0)


def simplest(system: str) -> str:
    return CONDITIONS.get(system, tuple(ALL))[0]


def make_step(system: System, number: int = 0) -> Step:
    """Images and noise at random, of three classes."""
    seed_everything(1, number)
    G = system.networks["G"]
    channels = 2 if isinstance(system.networks["D"], torch.nn.ModuleDict) else 1  # pairs are one above the other
    cond = Condition(torch.eye(3)[torch.arange(ROWS) % 3][:, : G.c_dim], torch.randn(ROWS, 5)[:, : G.h_dim])
    real, z = torch.randn(ROWS, channels, SIDE, SIDE).clamp(-1, 1), torch.randn(ROWS, G.z_dim)
    return Step(system.networks, real, cond, z, cond[torch.randperm(ROWS)], identity)


def train_a_little(system: System, steps: int = 2) -> None:
    """All phases, also those that are not due."""
    for number in range(steps):
        for phase in system.phases:
            system.run(phase, [make_step(system, number)])


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def different(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of conditions, each replaced by another."""
    return tensor.roll(1, dims=0)


def test_every_system_is_tested() -> None:
    assert {kind(system) for system in TINY} == set(SYSTEMS)


@pytest.mark.parametrize(("system", "cond"), OF_NOISE)
def test_networks_keep_to_their_shapes(system: str, cond: str) -> None:
    """G and D as the loop and the scripts call them."""
    networks = tiny_system(system, cond).networks
    G, D = networks["G"].eval(), networks["D"].eval()
    c_dim, h_dim = ALL[cond]
    assert (G.c_dim, G.h_dim, G.img_resolution, G.img_channels) == (c_dim, h_dim, SIDE, 1)
    z, c, h = torch.randn(3, G.z_dim), torch.eye(3)[:, :c_dim], torch.randn(3, h_dim)
    images = G(z, c, h, truncation_psi=0.7, truncation_cutoff=None, noise_mode="const")
    assert (images.shape, images.dtype) == ((3, 1, SIDE, SIDE), torch.float32)
    logits = D(images, c, h)
    assert (logits.shape, logits.dtype) == ((3, 1), torch.float32)
    assert G.num_ws >= 0  # 0: no w, nothing to project an image to
    with pytest.raises(ValueError, match="z"):
        G(torch.randn(3, G.z_dim + 1), c, h)
    with pytest.raises(ValueError, match="c: "):
        D(images, torch.zeros(3, c_dim + 1), h)


@pytest.mark.parametrize(("system", "cond"), CASES)
def test_a_phase_moves_only_the_network_it_trains(system: str, cond: str) -> None:
    tiny = tiny_system(system, cond)
    for phase in tiny.phases:
        before = {name: weights(network) for name, network in tiny.networks.items()}
        tiny.run(phase, [make_step(tiny)])
        for name, network in tiny.networks.items():
            assert torch.equal(weights(network), before[name]) == (name != phase.trains), (phase.name, name)
            assert weights(network).isfinite().all()
    assert {phase.trains for phase in tiny.phases} == set(tiny.networks)


@pytest.mark.parametrize(("system", "cond"), [case for case in CASES if case[1] != "none"])
@pytest.mark.parametrize("field", ["c", "h"])
def test_a_condition_matters_to_both_networks(system: str, cond: str, field: str) -> None:
    tiny = tiny_system(system, cond)
    if getattr(tiny.networks["G"], f"{field}_dim") == 0:
        return  # the other half of the condition
    train_a_little(tiny)
    for network in tiny.networks.values():
        network.eval()
    step = make_step(tiny)
    other = Condition(
        *(different(getattr(step.real_cond, name)) if name == field else getattr(step.real_cond, name) for name in "ch")
    )
    with torch.no_grad():
        images, others = (step.G(step.z, cond.c, cond.h, noise_mode="const") for cond in (step.real_cond, other))
    assert (images - others).abs().flatten(1).amax(dim=1).min() > 1e-6
    for phase in tiny.phases:
        if phase.trains == "D":
            losses = []
            for shown in (step.real_cond, other):  # what fakes are made of stays
                seed_everything(2)
                changed = Step(step.networks, step.real, shown, step.z, step.real_cond, identity)
                losses.append(sum(term(changed).mean() for term in phase.terms))
            assert (losses[0] - losses[1]).detach().abs() > 1e-7, phase.name


def gradients(system: str, rows: slice, size: int, training: bool) -> dict[str, torch.Tensor]:
    """Of every phase, on some rows of a batch in rounds of `size`, after a step; all draws are the same number.

    Args:
        training: normalise by batch statistics, which are those of a round, over all processes.
    """

    def same(value: float) -> Callable[..., torch.Tensor]:
        def draw(*size: Any, **how: Any) -> torch.Tensor:
            return torch.full(size if not size or isinstance(size[0], int) else size[0], value)

        return draw

    tiny, found = tiny_system(system, simplest(system)), {}
    step = make_step(tiny)
    whole = (step.real, step.real_cond, step.z, step.gen_cond)
    rounds = zip(*(part[rows].split(size) for part in whole), strict=True)
    steps = [Step(tiny.networks, *part, identity) for part in rounds]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("rand", 0.3), ("randn", 0.0)):
            patch.setattr(torch, name, same(value))
            patch.setattr(torch, f"{name}_like", lambda x, value=value: torch.full_like(x, value))
        for phase in tiny.phases:
            before = copy.deepcopy([network.state_dict() for network in tiny.networks.values()])
            for network in tiny.networks.values():
                network.train(training)
            tiny.run(phase, steps)
            trained = tiny.networks[phase.trains].named_parameters()
            found |= {f"{phase.name} {name}": p.grad.clone() for name, p in trained if p.grad is not None}
            for network, state in zip(tiny.networks.values(), before, strict=True):
                network.load_state_dict(state)
    assert len(found) > 5
    return found


@pytest.mark.parametrize("system", TINY)
def test_one_round_and_four_give_the_same_gradients(system: str) -> None:
    one, four = (gradients(system, slice(None), size, training=False) for size in (ROWS, ROWS // 4))
    torch.testing.assert_close(one, four, rtol=1e-3, atol=1e-5)


def half_of_the_work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/meeting", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    half = ROWS // 2
    for system in TINY:
        found = gradients(system, slice(rank * half, (rank + 1) * half), half, training=True)
        torch.save(found, f"{folder}/{system}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(half_of_the_work, (str(tmp_path),), nprocs=2)
    for system in TINY:
        together = gradients(system, slice(None), ROWS, training=True)
        first, second = (torch.load(tmp_path / f"{system}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert_equal(first, second)
        torch.testing.assert_close(first, together, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("system", TINY)
def test_a_run_resumes_to_the_same_tensors_and_its_snapshot_is_usable(
    system: str, patterns_zip: Path, tmp_path: Path
) -> None:
    flags = [*TINY[system], f"--data={patterns_zip}", f"--cond={simplest(system)}", "--batch=8", "--batch-gpu=4"]
    flags += ["--tick=0.032", "--snap=1", "--device=cpu"]
    if system in PAIRED:
        flags.append(f"--data-b={patterns_zip}")
    for name, kimg in (("whole", 0.064), ("parts", 0.032)):
        result = invoke(train.main, *flags, f"--kimg={kimg}", f"--outdir={tmp_path / name}")
        assert result.exit_code == 0, result.output
    result = invoke(train.main, "--resume=latest", "--kimg=0.064", f"--outdir={tmp_path / 'parts'}")
    assert result.exit_code == 0, result.output
    whole, parts = (
        read_state(max(tmp_path.glob(f"{name}/*/training-state-*.pt")))["members"] for name in ("whole", "parts")
    )
    del whole["stats"], parts["stats"]  # how long it took
    assert_equal(whole, parts)

    snapshot = max(tmp_path.glob("whole/*/network-snapshot-*.pt"))
    generator = load_model(snapshot, torch.device("cpu"), translator=system in PAIRED).generator
    assert_equal(generator.state_dict(), whole["G_ema"])
    if system not in PAIRED:
        result = invoke(generate.main, f"--network={snapshot}", "--seeds=0,1", f"--outdir={tmp_path / 'out'}")
        assert result.exit_code == 0, result.output
        assert len(list((tmp_path / "out").glob("*seed*.png"))) >= 2


def assert_equal(ours: Any, theirs: Any) -> None:
    """The same numbers, to the bit, at the same places."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    ("system", "cond"), [(system, cond) for system, there in CONDITIONS.items() for cond in ALL if cond not in there]
)
def test_a_condition_it_has_no_use_for_is_refused_in_one_line(
    system: str, cond: str, refused: Refused, patterns_zip: Path, tmp_path: Path
) -> None:
    flags = [*TINY[system], f"--data={patterns_zip}", f"--cond={cond}", "--device=cpu", f"--outdir={tmp_path / 'runs'}"]
    if system in PAIRED:
        flags.append(f"--data-b={patterns_zip}")
    assert f"--cond={cond}: {system} " in refused(train.main, *flags)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_phases_have_names_of_their_own() -> None:
    for system in TINY:
        phases: list[Phase] = tiny_system(system, simplest(system)).phases
        assert len({phase.name for phase in phases}) == len(phases)
