"""BigGAN, SAGAN and IC-GAN BigGAN networks of others -> options of ours, by shapes alone."""

import re
from typing import NamedTuple

from stylegan2_icgan.published_files.pickle_reader import Refusal
from stylegan2_icgan.published_files.shapes import Tensors, shape_of
from stylegan2_icgan.systems.biggan import BigGANOptions
from training.networks.biggan import FIRST, WIDTHS
from training.system import DataShape

STAGE = re.compile(r"blocks\.(\d{1,2})\.\d\.")
ATTENTION = re.compile(r"blocks\.(\d{1,2})\.\d\.theta\.weight")


class Reading(NamedTuple):
    """What the inputs of the layers mean."""

    hier: bool
    with_class: bool
    z_dim: int


def recognise(tensors: Tensors) -> bool:
    """Whether a state dict is that of a BigGAN generator."""
    return "blocks.0.0.bn1.stored_mean" in tensors and "output_layer.0.gain" in tensors


def options_of(tensors: Tensors) -> tuple[BigGANOptions, DataShape]:
    """Options and shape of a generator, of its state dict.

    A published "unconditional" network is a class-conditional one whose label is always 0, and is read as that.

    Raises:
        Refusal: no such generator, or one whose shapes can be read in two ways.
    """
    stages = {int(found[1]) for name in tensors if (found := STAGE.match(name))}
    resolution = FIRST << len(stages)
    if stages != set(range(len(stages))) or resolution not in WIDTHS:
        raise Refusal(f"has {len(stages)} stages of blocks; expected 1 to {len(WIDTHS)}, for 8 to {max(WIDTHS)} pixels")
    conditioned = shape_of(tensors, "blocks.0.0.bn1.gain.weight", 2)
    channels = shape_of(tensors, "blocks.0.0.bn1.stored_mean", 1)[0]
    _, first = shape_of(tensors, "linear.weight", 2)
    deep = "blocks.0.1.conv4.weight" in tensors
    rows, shared_dim = shape_of(tensors, "shared.weight", 2) if "shared.weight" in tensors else (0, 0)
    feat_dim, h_dim = shape_of(tensors, "shared_feat.weight", 2) if "shared_feat.weight" in tensors else (0, 0)
    shared = rows > 0 or h_dim > 0
    if shared:
        reading = _read(conditioned[1], first, deep, len(stages), shared_dim, feat_dim)
        c_dim = rows if reading.with_class else 0
    else:  # every layer has a row a class
        reading, c_dim = Reading(hier=False, with_class=True, z_dim=first), conditioned[0]

    attention = sorted(FIRST << int(found[1]) + 1 for name in tensors if (found := ATTENTION.match(name)))
    options = BigGANOptions(
        z_dim=reading.z_dim,
        ch=channels // WIDTHS[resolution].g[0],
        deep=deep,
        hier=reading.hier,
        shared=shared,
        shared_dim=shared_dim or BigGANOptions.shared_dim,
        shared_dim_feat=feat_dim or BigGANOptions.shared_dim_feat,
        attention=",".join(map(str, attention)) or "0",
        init="normal",  # the quickest to draw; the weights are there
    )
    img_channels = shape_of(tensors, "output_layer.2.weight", 4)[0]
    return options, DataShape(resolution, img_channels, c_dim, h_dim)


def unused(tensors: Tensors, shape: DataShape) -> list[str]:
    """Tensors of a published generator that it never reads: the table of classes beside instances alone."""
    return ["shared.weight"] if shape.h_dim and not shape.c_dim and "shared.weight" in tensors else []


def _read(inputs: int, first: int, deep: bool, num_stages: int, shared_dim: int, feat_dim: int) -> Reading:
    """Tell apart what conditions a layer: the class, the instance and z or a chunk of it, one after another.

    Args:
        inputs: width of all of it.
        first: inputs of the first layer.
    """
    readings = []
    for with_class in [False] * (feat_dim > 0) + [True] * (shared_dim > 0):
        rest = inputs - feat_dim - shared_dim * with_class
        if rest == 0:
            readings.append(Reading(hier=False, with_class=with_class, z_dim=first))
        elif deep and first == inputs and rest > 0:
            readings.append(Reading(hier=True, with_class=with_class, z_dim=rest))
        elif not deep and first == rest:
            readings.append(Reading(hier=True, with_class=with_class, z_dim=rest * (num_stages + 1)))
    if len(readings) != 1:
        ways = "no way" if not readings else "two ways"
        raise Refusal(f"has layers of {inputs} inputs, which can be read in {ways} as class, instance and noise")
    return readings[0]
