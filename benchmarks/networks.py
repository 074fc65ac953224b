"""The networks that benchmarks train and generate with, and the conditions that they are run on."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from stylegan2_icgan.presets import PRESETS
from stylegan2_icgan.systems import SYSTEMS
from torch_utils.command_line import UserError
from torch_utils.precision import LOW_DTYPES, low_dtype, set_math
from training.augment import Augmentation, AugmentOptions
from training.condition import Condition
from training.mixed_precision import Precision
from training.step import Step
from training.system import DataShape, Phase, System

H_DIM = 2048  # of ResNet-50, which published networks are conditioned on
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
AUG_P = 0.5  # of ada: in the middle of a run


class Network(NamedTuple):
    """One row of the table below."""

    system: str
    values: Mapping[str, Any]  # of the system's options
    resolution: int
    batch: int


def _preset(name: str, resolution: int, batch: int) -> Network:
    row = PRESETS[name]
    names = {field.name for field in dataclasses.fields(SYSTEMS[row.system].options)}
    values = {name: value for name, value in row.values(resolution).items() if name in names}
    return Network(row.system, values | {"num_fp16_res": 0} if "num_fp16_res" in values else values, resolution, batch)


TOY = {"z_dim": 32, "w_dim": 32, "map_layers": 2, "channel_base": 1024, "channel_max": 32}
NETWORKS = {
    "toy": Network("stylegan2", TOY, 32, 4),
    "tiny": _preset("tiny", 16, 16),
    "small": Network("stylegan2", {"channel_base": 4096, "channel_max": 128}, 64, 16),
    "full32": Network("stylegan2", {"channel_base": 16384}, 32, 16),
    "paper256": _preset("paper256", 256, 32),
    "wide256": Network("stylegan2", {"channel_base": 32768}, 256, 32),
    "biggan-tiny": _preset("biggan-tiny", 32, 16),
    "biggan64": _preset("icgan-biggan-64", 64, 64),
}


def options(name: str, precision: str, batch: int) -> Any:
    """A row's, with what is derived for it; low precision is that of published runs, or with bf16 all blocks'."""
    network = NETWORKS[name]
    kind = SYSTEMS[network.system]
    values = dict(network.values)
    if network.system == "stylegan2" and precision in ("fp16", "bf16"):
        values |= {"num_fp16_res": 4 if precision == "fp16" else 16, "conv_clamp": 256.0}
    made = kind.options(**values)
    derived = kind.derive(made, network.resolution, batch, batch)
    return dataclasses.replace(made, **{k: v for k, (v, _) in derived.items() if getattr(made, k) is None})


def make_system(name: str, precision: str, cond: str, batch: int, device: torch.device) -> System:
    """Networks with random weights, on the device, and what trains them; chooses TF32 for the process."""
    set_math(tf32=precision == "tf32", cudnn_benchmark=True)
    low = low_dtype(precision if precision in LOW_DTYPES else "fp32", device)
    kind, o = SYSTEMS[NETWORKS[name].system], options(name, precision, batch)
    shape = DataShape(NETWORKS[name].resolution, 3, 0, H_DIM if cond == "instance" else 0)
    torch.manual_seed(0)
    networks = {key: make(o, shape).to(device).train() for key, make in kind.networks.items()}
    system = kind.build(o, networks)
    if low is not None and kind is not SYSTEMS["stylegan2"]:
        system.precision = Precision(precision)
    elif low is not None:
        networks["G"].synthesis.low_dtype = networks["D"].low_dtype = low
    return system


class Conditions:
    """Makes steps: real images that are noise, and conditions that are directions.

    Args:
        aug: 'none', or 'ada': its pipe at p = 0.5.
    """

    def __init__(self, system: System, name: str, batch: int, aug: str, device: torch.device) -> None:
        self.system, self.batch, self.device = system, batch, device
        side = NETWORKS[name].resolution
        self.real = torch.randn(batch, 3, side, side, device=device).clamp(-1, 1)
        self.condition = conditions(system.networks["G"], batch, device)
        self.augment = Augmentation(AugmentOptions("fixed" if aug == "ada" else "noaug", p=AUG_P)).to(device)

    def step(self) -> Step:
        z = torch.randn(self.batch, self.system.networks["G"].z_dim, device=self.device)
        return Step(self.system.networks, self.real, self.condition, z, self.condition, self.augment)

    def run(self, phase: Phase) -> None:
        self.system.run(phase, [self.step()])


def conditions(G: torch.nn.Module, num: int, device: torch.device) -> Condition:
    """`num` unit vectors, or none of any width."""
    h = torch.nn.functional.normalize(torch.randn(num, max(G.h_dim, 1), device=device), dim=1)
    return Condition(torch.zeros(num, 0, device=device), h[:, : G.h_dim])


def peer_spec(name: str, precision: str, cond: str, batch: int, device: torch.device) -> dict[str, Any]:
    """What benchmarks/peer/peer.py is told of a network.

    Raises:
        UserError: published checkouts have no such network, or precision.
    """
    network = NETWORKS[name]
    if network.system != "stylegan2" or precision == "bf16":
        raise UserError(f"--peer: it can't train {name} in {precision}; expected a StyleGAN2 in fp32, tf32 or fp16")
    o = options(name, precision, batch)
    names = ("z_dim", "w_dim", "map_layers", "channel_base", "channel_max", "num_fp16_res", "conv_clamp")
    return {
        **{name: getattr(o, name) for name in (*names, "mbstd_group", "gamma", "pl_weight", "style_mixing")},
        "phases": {"Gmain": 1, "Greg": o.pl_interval, "Dmain": 1, "Dreg": o.r1_interval},
        "h_dim": H_DIM if cond == "instance" else 0,
        "resolution": network.resolution,
        "batch": batch,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "tf32": precision == "tf32",
    }
