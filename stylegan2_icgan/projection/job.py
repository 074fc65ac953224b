"""From flags to a folder: projected_w.npz, the images, a sheet and, on request, a film of the search."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stylegan2_icgan.conditioning import LONGEST_STEM
from stylegan2_icgan.models import Model, open_model
from stylegan2_icgan.projection.distances import Distance, make_distance
from stylegan2_icgan.projection.files import Projection, render, save_projection
from stylegan2_icgan.projection.latents import FreeStyles, MappedStyles, style_statistics
from stylegan2_icgan.projection.noise_maps import own_maps
from stylegan2_icgan.projection.options import Inputs, SearchOptions
from stylegan2_icgan.projection.search import search
from stylegan2_icgan.projection.targets import condition_of
from stylegan2_icgan.projection.watch import Say, Watch
from stylegan2_icgan.using.image_files import save_image, save_sheet, writing_to
from stylegan2_icgan.using.rendering import require_styles
from stylegan2_icgan.using.video import pick_format, write_video
from torch_utils.command_line import UserError
from torch_utils.files import sha256
from training.condition import Condition
from training.image_grid import sheet_scale
from training.sampling import from_uint8

FPS = 20  # of a film


def project(inputs: Inputs, options: SearchOptions, say: Say) -> str:
    """Search, and write what was found; lines that say so.

    Raises:
        UserError: naming the flag that does not fit.
    """
    model = open_model(inputs.network, inputs.device, inputs.ops)
    device = model.device
    require_styles(model, "projector.py")
    if options.optimise_instance and not model.recipe.shape.h_dim:
        raise UserError("--optimise-instance: this model is not conditioned on instances; leave it out")
    targets = model.pixels(inputs.targets, "--target")
    condition = condition_of(model, inputs)
    distance = make_distance(inputs.distance, inputs.lpips_weights, from_uint8(targets).to(device))
    generator = model.generator

    hint = " (for LPIPS give --lpips-weights)" if inputs.distance == "auto" and distance.name == "pyramid" else ""
    say(f"{len(targets)} target(s), {options.steps} steps in {options.space}; distance: {distance.name}{hint}")
    watch = Watch(options.steps, targets, inputs.video, say)
    with writing_to(inputs.outdir):
        found = find(model, condition, distance, options, watch)
        images = render(generator, found)
        with torch.no_grad():
            reached = distance(from_uint8(images).to(device)).tolist()
        assert watch.start is not None
        start_images, start = watch.start
        record = {
            **dataclasses.asdict(options),
            "distance": distance.name,
            "targets": [path.name for path in inputs.targets],
            "distance_start": start,
            "distance_end": reached,
        }
        write_images(inputs.outdir, inputs.targets, targets, images)
        save_sheet(torch.stack([start_images, images], dim=1), targets.unsqueeze(1), inputs.outdir / "sheet.png")
        if watch.frames:
            write_film(watch.frames, inputs.outdir, sheet_scale(targets.shape[-1]))
        save_projection(inputs.outdir / "projected_w.npz", dataclasses.replace(found, options=record))
    numbers = zip(inputs.targets, start, reached, strict=True)
    lines = [f"{path}: distance {before:.4f} -> {after:.4f}" for path, before, after in numbers]
    return "\n".join([*lines, f"{inputs.outdir / 'projected_w.npz'}, shown on {inputs.outdir / 'sheet.png'}"])


def find(model: Model, condition: Condition, distance: Distance, options: SearchOptions, watch: Watch) -> Projection:
    """Search, from the mean style of each condition and the network's own noise maps on."""
    generator, condition = model.generator, condition.to(model.device)
    statistics = style_statistics(generator.mapping, condition, options.seed)
    latents: FreeStyles | MappedStyles
    if options.optimise_instance:
        latents = MappedStyles(generator.mapping, statistics.central_z, condition)
    else:
        latents = FreeStyles(statistics.mean, generator.num_ws, each=options.space == "w+")
    maps: dict[str, Tensor] = {}
    if options.optimise_noise:
        maps = {name: own.repeat(len(condition), 1, 1) for name, own in own_maps(generator).items()}
    search(generator, latents, statistics.deviation, maps, distance, options, watch.at, watch)
    mapped = latents if isinstance(latents, MappedStyles) else None
    return Projection(
        w=latents.styles().detach().cpu(),
        condition=Condition(condition.c, mapped.h.detach() if mapped else condition.h).to("cpu"),
        z=mapped.z.detach().cpu() if mapped else None,
        maps={name: noise.detach().cpu() for name, noise in maps.items()},
        network_sha256=sha256(model.path),
    )


def write_images(outdir: Path, paths: Sequence[Path], targets: Tensor, images: Tensor) -> None:
    """target.png and projection.png; of several targets with their numbers and names, target-00-cat.png."""
    for row, (path, target, image) in enumerate(zip(paths, targets, images, strict=True)):
        tag = "" if len(paths) == 1 else f"-{row:02d}-{path.stem[:LONGEST_STEM]}"
        save_image((outdir / f"target{tag}.png", target))
        save_image((outdir / f"projection{tag}.png", image))


def write_film(frames: Sequence[Tensor], outdir: Path, scale: int) -> None:
    """search.mp4 where it can be written, else search.gif."""
    write_video(frames, outdir, pick_format("auto"), FPS, scale, stem="search")
