"""Walk from image to image, through noise, instances and classes; as frames, GIF or MP4.

Seeds and conditions go together one by one; a single one of either goes with all of the other.

\b
    python interpolate.py --network=S.pt --seeds=0-3 --loop                     # noise, of the first exemplar
    python interpolate.py --network=S.pt --seeds=0 --instances=exemplars:3,9    # from instance to instance
    python interpolate.py --network=S.pt --seeds=0,1 --instance-images a.png b.png --format=mp4
"""

import sys
from dataclasses import dataclass
from typing import Any

import click

from stylegan2_icgan.conditioning import Choice
from stylegan2_icgan.models import open_model
from stylegan2_icgan.using.choosing import chosen_rows
from stylegan2_icgan.using.flags import (
    Flags,
    actually_given,
    check_shared,
    model_flags,
    never_together,
    rows_flags,
    take,
)
from stylegan2_icgan.using.image_files import writing_to
from stylegan2_icgan.using.rendering import Renderer, pair, require_styles
from stylegan2_icgan.using.video import FORMATS, pick_format, write_video
from stylegan2_icgan.using.walks import WalkOptions, count_frames, side_by_side
from torch_utils.command_line import Command, Ranges, UserError, dataclass_options
from training.config import option
from training.image_grid import sheet_scale


@dataclass(frozen=True)
class Options(WalkOptions):
    """The flags of interpolate.py alone."""

    format: str = option("auto", "frames: a folder of PNG; auto: mp4 if it can be written, else gif.", choices=FORMATS)
    fps: int = option(24, "Frames a second, of GIF and MP4.", unit="N")


@click.command(cls=Command, help=__doc__)
@model_flags
@rows_flags
@click.option("--seeds", type=Ranges(), default="0-3", show_default=True, help="Seeds of the noise z.", metavar="0-3,7")
@dataclass_options(Options)
def main(seeds: list[int], **words: Any) -> None:
    given = actually_given(words)
    check_shared(given)
    flags, how = take(Flags, given), take(Options, given)
    if how.frames < 1 or not 1 <= how.fps <= 50:
        raise UserError(f"--frames={how.frames} --fps={how.fps}: expected at least 1 frame, and 1 to 50 a second")
    if flags.noise_mode == "random":
        raise UserError("--noise-mode=random: every frame would have other noise; expected const or none")
    if how.space == "w":
        never_together(given, "path", ["space"], "in w the path is a straight line")
    kind = pick_format(how.format)
    model = open_model(flags.network, flags.device, flags.ops)
    if how.space == "w":
        require_styles(model, "--space=w")
    table = chosen_rows(model, flags, Choice(flags.rows, most=1))
    points = pair(seeds, range(len(table)), "--seeds", "--rows, --instances or the images given")
    num_frames = count_frames(len(points), how)
    renderer = Renderer(model, flags)
    with writing_to(flags.outdir):
        frames = side_by_side(renderer, table, points, how)
        path = write_video(frames, flags.outdir, kind, how.fps, sheet_scale(model.recipe.shape.img_resolution))
    click.echo(f"{num_frames} frames in {path}")


if __name__ == "__main__":
    sys.exit(main())
