"""Mix styles: each row's image with some layers' styles taken from each column's; a grid, and single images.

\b
    python style_mixing.py --network=S.pt --rows=0-3 --cols=4-7 --col-styles=0-6
    python style_mixing.py --network=S.pt --rows=0 --cols=4-7 --col-styles 0-3 4-7 8-13
    python style_mixing.py --network=S.pt --rows=0 --row-instances=3,8 --cols=1-4 --col-instances=12
"""

import sys
from typing import Any

import click

from stylegan2_icgan.conditioning import Choice
from stylegan2_icgan.models import open_model
from stylegan2_icgan.using.choosing import chosen_rows
from stylegan2_icgan.using.flags import Flags, actually_given, check_shared, model_flags, take
from stylegan2_icgan.using.image_files import save_sheet, writing_to
from stylegan2_icgan.using.mixing import parse_styles, write_mixes
from stylegan2_icgan.using.rendering import Renderer, pair, require_styles
from torch_utils.command_line import Command, Ranges, Words


def numbers(flag: str, name: str, text: str, default: str | None = None) -> Any:
    return click.option(flag, name, type=Ranges(), default=default, show_default=True, help=text, metavar="0-3,7")


@click.command(cls=Command, help=__doc__)
@model_flags
@numbers("--rows", "row_seeds", "Seeds of the rows.", "0-3")
@numbers("--cols", "col_seeds", "Seeds of the columns.", "4-7")
@numbers("--row-instances", "row_instances", "Feature row, image or exemplar of each row.  [default: the first]")
@numbers("--col-instances", "col_instances", "The same of each column.")
@click.option(
    "--col-styles",
    cls=Words,
    type=Ranges(),
    help="Styles taken from the column, or several sets of them.  [default: 0-6, at most half of them]",
    metavar="0-3,7 ...",
)
def main(
    row_seeds: list[int],
    col_seeds: list[int],
    row_instances: list[int] | None,
    col_instances: list[int] | None,
    col_styles: tuple[list[int], ...],
    **words: Any,
) -> None:
    given = actually_given(words)
    check_shared(given)
    flags: Flags = take(Flags, given)
    model = open_model(flags.network, flags.device, flags.ops)
    require_styles(model, "style_mixing.py")
    sides = [row_instances or [0], col_instances or [0]]
    asked = row_instances is not None or col_instances is not None
    flag = "--row-instances or --col-instances"
    table = chosen_rows(model, flags, Choice(sorted({*sides[0], *sides[1]}) if asked else None, 1, flag))
    place = {number: at for at, number in enumerate(table.ids)} if asked else {0: 0}
    rows = pair(row_seeds, [place[number] for number in sides[0]], "--rows", "--row-instances")
    cols = pair(col_seeds, [place[number] for number in sides[1]], "--cols", "--col-instances")
    renderer = Renderer(model, flags)
    sets = parse_styles(col_styles, renderer.generator.num_ws)
    with writing_to(flags.outdir):
        grid = write_mixes(renderer, table, rows, cols, sets, flags.outdir)
        save_sheet(grid, None, flags.outdir / "grid.png")
    count = len(sets) * len(rows) * len(cols)
    click.echo(
        f"{count} mixes in {flags.outdir}, all of them on {flags.outdir / 'grid.png'}; styles "
        f"{', then '.join(map(str, sets))} of columns"
    )


if __name__ == "__main__":
    sys.exit(main())
