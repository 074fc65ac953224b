"""StyleGAN2-ADA and IC-GAN StyleGAN2 networks of others -> options of ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stylegan2_icgan.published_files.pickle_reader import Refusal, quoted
from stylegan2_icgan.published_files.shapes import Tensors, expect, shape_of
from stylegan2_icgan.systems.stylegan2 import StyleGAN2Options
from training.config import option
from training.system import DataShape

BLOCK = re.compile(r"synthesis\.b(\d{1,5})\.")


@dataclass(frozen=True)
class Unseen:
    """What the shapes of parameters do not tell; pickles say it themselves."""

    conv_clamp: float | None = option(
        None, "Of a StyleGAN2 state dict: bound of activations; 256 where it was trained in float16.", unit="X"
    )
    num_fp16_res: int = option(0, "Of a StyleGAN2 state dict: highest resolutions in float16.", unit="N")
    map_lr: float = option(0.01, "Of a StyleGAN2 state dict: learning rate of its mapping networks.", unit="SHARE")
    mbstd_group: int | None = option(
        4, "Of a StyleGAN2 state dict: group of the discriminator's standard deviation.", unit="N"
    )


# What the published constructors take, and what becomes of it: told by shapes (strictly compared later), an option of
# ours (its name), of no meaning for a trained network, or a value that our networks have built in.
SHAPES, UNUSED = object(), object()
Table = dict[str, Any]
MAPPING: Table = {"num_layers": SHAPES, "embed_features": SHAPES, "layer_features": SHAPES, "lr_multiplier": "map_lr"}
MAPPING |= {"activation": ("lrelu",), "w_avg_beta": UNUSED}
FLOAT16 = {"num_fp16_res": "num_fp16_res", "conv_clamp": "conv_clamp"}
COMMON = dict.fromkeys(("c_dim", "h_dim", "img_resolution", "img_channels"), SHAPES)
WIDTHS = dict.fromkeys(("channel_base", "channel_max", "architecture"), SHAPES)
FILTER = {"resample_filter": SHAPES}  # a buffer, so among the tensors
GENERATOR = COMMON | dict.fromkeys(("z_dim", "w_dim"), SHAPES)
SYNTHESIS: Table = WIDTHS | FLOAT16 | FILTER | {"use_noise": (True,), "activation": ("lrelu",)}
DISCRIMINATOR = COMMON | WIDTHS | FLOAT16 | {"cmap_dim": SHAPES}
BLOCKS: Table = FILTER | {"activation": ("lrelu",), "freeze_layers": UNUSED}
EPILOGUE: Table = {"mbstd_group_size": "mbstd_group", "mbstd_num_channels": (1,), "activation": ("lrelu",)}
PUBLISHED = Unseen()  # what the published constructors take where they are not told


def unseen_of_generator(kwargs: Mapping[str, Any]) -> Unseen:
    """From what a published generator was made with.

    Raises:
        Refusal: an argument that is unknown, or whose value our networks do not have.
    """
    parts = {"mapping_kwargs": MAPPING, "synthesis_kwargs": SYNTHESIS}
    return _unseen(kwargs, GENERATOR, parts)


def unseen_of_discriminator(kwargs: Mapping[str, Any]) -> Unseen:
    """From what a published discriminator was made with; see above."""
    parts = {"mapping_kwargs": MAPPING, "block_kwargs": BLOCKS, "epilogue_kwargs": EPILOGUE}
    return _unseen(kwargs, DISCRIMINATOR, parts)


def _unseen(kwargs: Mapping[str, Any], table: Table, parts: Mapping[str, Table]) -> Unseen:
    found = _taken({name: value for name, value in kwargs.items() if name not in parts}, table)
    for name, part in parts.items():
        given = kwargs.get(name) or {}
        if not isinstance(given, dict):
            raise Refusal(f"has {name} that are no dictionary")
        found |= _taken(given, part)
    return replace(PUBLISHED, **found)


def _taken(kwargs: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """The arguments that are options of ours, by our names."""
    found: dict[str, Any] = {}
    for name, value in kwargs.items():
        meaning = table.get(name)
        if meaning is None:
            raise Refusal(f"has a network made with {quoted(str(name))}, which is unknown here")
        if isinstance(meaning, tuple) and not (isinstance(value, str | int) and value in meaning):
            raise Refusal(f"has a network made with a {name} of its own; here it is always {meaning[0]}")
        if isinstance(meaning, str):
            if value is not None and type(value) not in (int, float):
                raise Refusal(f"has a network made with a {name} that is no number")
            found[meaning] = float(value) if meaning in ("conv_clamp", "map_lr") and value is not None else value
    return found


def recognise(tensors: Tensors) -> bool:
    """Whether a state dict is that of a StyleGAN2 generator."""
    return "synthesis.b4.conv1.weight" in tensors


def options_of(tensors: Tensors, unseen: Unseen) -> tuple[StyleGAN2Options, DataShape]:
    """Options and shape of a generator, of its state dict.

    Raises:
        Refusal: no such generator.
    """
    resolutions = sorted({int(found[1]) for name in tensors if (found := BLOCK.match(name))})
    if resolutions != [4 << power for power in range(len(resolutions))] or not 2 <= len(resolutions) <= 10:
        raise Refusal(f"has blocks of resolutions {resolutions[:12]}; expected 4, 8, 16, ... to 2048 at most")
    img_channels = shape_of(tensors, f"synthesis.b{resolutions[-1]}.torgb.weight", 4)[0]

    # The mapping network: the widths of z, c, h and w.
    layers = num_layers(tensors)
    w_dim, joined = shape_of(tensors, "mapping.fc0.weight", 2)
    for index in range(1, layers):
        expect(tensors, f"mapping.fc{index}.weight", w_dim, w_dim)
    dims = {}
    for name, key in (("c_dim", "mapping.embed.weight"), ("h_dim", "mapping.embed_feats.weight")):
        embedded, dims[name] = shape_of(tensors, key, 2) if key in tensors else (0, 0)
        joined -= embedded

    # The synthesis network: its channels.
    channels = {}
    for resolution in resolutions:
        block = f"synthesis.b{resolution}.conv1"
        channels[resolution] = width = shape_of(tensors, f"{block}.weight", 4)[0]
        expect(tensors, f"{block}.weight", width, width, 3, 3)
        expect(tensors, f"{block}.affine.weight", width, w_dim)
        expect(tensors, f"{block}.noise_const", resolution, resolution)

    options = StyleGAN2Options(
        z_dim=joined,
        w_dim=w_dim,
        map_layers=layers,
        map_lr=unseen.map_lr,
        channel_base=max(resolution * width for resolution, width in channels.items()),  # min(base // R, max) each
        channel_max=max(channels.values()),
        g_architecture=architecture_of(tensors, "synthesis.b4.torgb.weight", "synthesis.b8.skip.weight"),
        mbstd_group=unseen.mbstd_group,
        num_fp16_res=unseen.num_fp16_res,
        conv_clamp=unseen.conv_clamp,
    )
    return options, DataShape(resolutions[-1], img_channels, **dims)


def num_layers(tensors: Tensors) -> int:
    """Layers of the mapping network."""
    return len([name for name in tensors if re.fullmatch(r"mapping\.fc\d+\.weight", name)])


def architecture_of(tensors: Tensors, in_skip: str, in_resnet: str) -> str:
    """Which of the three architectures, by a tensor that only one of them has."""
    return "skip" if in_skip in tensors else "resnet" if in_resnet in tensors else "orig"


def with_discriminator(options: StyleGAN2Options, tensors: Tensors, unseen: Unseen) -> StyleGAN2Options:
    """The options of a generator and of the discriminator beside it.

    Raises:
        Refusal: the two differ in what is one option here.
    """
    layers = num_layers(tensors)
    d_map_layers = layers if layers not in (0, options.map_layers) else None
    for name in ("map_lr", "num_fp16_res", "conv_clamp"):
        if getattr(unseen, name) != getattr(options, name) and (layers or name != "map_lr"):
            raise Refusal(f"has {name} {getattr(unseen, name)}, the generator {getattr(options, name)}")
    architecture = architecture_of(tensors, "b4.fromrgb.weight", "b8.skip.weight")
    return replace(options, d_architecture=architecture, mbstd_group=unseen.mbstd_group, d_map_layers=d_map_layers)
