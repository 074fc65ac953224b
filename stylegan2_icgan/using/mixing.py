"""Style mixing: some layers take the styles of one image, the others those of another (StyleGAN, section 3.1)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from stylegan2_icgan.conditioning import UNSEEN, Rows
from stylegan2_icgan.using.encoding import in_threads
from stylegan2_icgan.using.image_files import save_image
from stylegan2_icgan.using.rendering import Point, Renderer
from torch_utils.command_line import UserError

LAYERS_UP_TO_32 = 7  # pixels: what the paper calls coarse and middle styles


def parse_styles(chosen: Sequence[Sequence[int]], num_ws: int) -> list[list[int]]:
    """Which styles come from the columns, one or several sets of them.

    Without a choice those up to 32 pixels, but never more than half of all.
    """
    if not chosen:
        return [list(range(min(LAYERS_UP_TO_32, num_ws // 2)))]
    beyond = [style for styles in chosen for style in styles if style >= num_ws]
    if beyond:
        raise UserError(f"--col-styles: {beyond[0]} is beyond this model's {num_ws} styles; expected 0 to {num_ws - 1}")
    return [list(styles) for styles in chosen]


def write_mixes(
    renderer: Renderer,
    table: Rows,
    rows: Sequence[Point],
    cols: Sequence[Point],
    sets: Sequence[list[int]],
    outdir: Path,
) -> torch.Tensor:
    """Write the image of every point, and of every row with the columns' styles, for each set of styles.

    Returns:
        uint8 [1 + sets * rows, 1 + columns, C, H, W], the points' own images in the first column and row.
    """
    ws = {point: renderer.styles_of(table, point) for point in (*rows, *cols)}
    jobs = [(ws[point], point, point.name(table)) for point in (*cols, *rows)]
    for number, styles in enumerate(sets):
        ending = f"-set{number}" if len(sets) > 1 else ""
        for row in rows:
            for col in cols:
                both = ws[row].clone()
                both[:, styles] = ws[col][:, styles]
                jobs.append((both, row, f"{row.name(table)}+{col.name(table)}{ending}"))

    def images() -> Iterator[tuple[Path, torch.Tensor]]:
        for w, point, name in jobs:
            renderer.seed_noise(point.seed, table.names[point.row])
            yield outdir / f"{name}.png", renderer.from_styles(w)[0]

    written = list(in_threads(save_image, images()))
    corner = torch.full_like(written[0], UNSEEN)
    top, left, inner = written[: len(cols)], written[len(cols) :][: len(rows)], written[len(cols) + len(rows) :]
    lines = [[corner, *top]]
    for number, own in enumerate(left * len(sets)):
        lines.append([own, *inner[number * len(cols) :][: len(cols)]])
    return torch.stack([torch.stack(line) for line in lines])
