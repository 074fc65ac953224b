"""Take a trained generator elsewhere: as ONNX, as a torch.export program, as a folder for the Hugging Face hub.

\b
    python export.py --network=S.pt --out=model.onnx        for onnxruntime and others
    python export.py --network=S.pt --out=model.pt2         for torch.export.load
    python export.py --network=S.pt --out=my-model          a folder: safetensors, config.json, model card
    python export.py --network=S.pt --out=exemplars.npz     the stored conditions alone

The name of --out says which. ONNX files and programs are compared with the model before they get their name.
"""

import math
import sys
from pathlib import Path

import click
import torch

from stylegan2_icgan.exporting.exemplar_archive import save_exemplars
from stylegan2_icgan.exporting.folder import check_folder, write_folder
from stylegan2_icgan.exporting.inference import Fixed
from stylegan2_icgan.exporting.programs import import_onnxruntime, save_onnx, save_program
from stylegan2_icgan.models import Model, load_model
from torch_utils.command_line import Command, NearestChoice, UserError

PROGRAMS = (".onnx", ".pt2")


@click.command(cls=Command, help=__doc__)
@click.option("--network", type=Path, required=True, help="Snapshot written by train.py.", metavar="FILE")
@click.option("--out", type=Path, required=True, help="What to write: *.onnx, *.pt2, *.npz or a folder.", metavar="OUT")
@click.option("--trunc", type=float, help="Of .onnx and .pt2: truncation psi, fixed.  [default: 1]", metavar="PSI")
@click.option("--trunc-cutoff", type=int, help="Of .onnx and .pt2: truncate only the first N styles.", metavar="N")
@click.option(
    "--noise-mode", type=NearestChoice(["const", "none"]), help="Of .onnx and .pt2: its noise.  [default: const]"
)
def main(network: Path, out: Path, trunc: float | None, trunc_cutoff: int | None, noise_mode: str | None) -> None:
    check_out(out, {"--trunc": trunc, "--trunc-cutoff": trunc_cutoff, "--noise-mode": noise_mode})
    if not math.isfinite(trunc or 0) or (trunc_cutoff or 0) < 0:
        raise UserError(
            f"--trunc={trunc} --trunc-cutoff={trunc_cutoff}: expected a finite psi and a cutoff of 0 or more"
        )
    model = load_model(network, torch.device("cpu"))
    fixed = Fixed(1.0 if trunc is None else trunc, trunc_cutoff, noise_mode or "const")
    try:
        click.echo(f"{out}: {write(model, out, fixed)}")
    except OSError as error:
        raise UserError(f"--out={out} can't be written ({error}); name another place") from None


def check_out(out: Path, only_programs: dict[str, object]) -> None:
    """Whether `out` can be written, and the flags have a meaning for it."""
    given = [flag for flag, value in only_programs.items() if value is not None]
    if given and out.suffix not in PROGRAMS:
        raise UserError(
            f"{given[0]} is fixed in .onnx and .pt2 files alone; --out={out} is used with any, leave it out"
        )
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: the folder {out.parent} does not exist; make it first")
    if out.suffix == ".onnx":
        import_onnxruntime(out)
    if out.suffix not in (*PROGRAMS, ".npz"):
        check_folder(out)
    elif out.is_dir():
        raise UserError(f"--out={out} is a folder; name a file")


def write(model: Model, out: Path, fixed: Fixed) -> str:
    """Write what the name of `out` says; in a few words, what that was."""
    if out.suffix == ".npz":
        save_exemplars(model.exemplars, out)
        return f"{len(model.exemplars)} exemplars"
    generator = model.generator  # built here: its weights fit
    if out.suffix == ".pt2":
        return f"a torch.export program, images equal to {save_program(generator, fixed, out):.1g}"
    if out.suffix == ".onnx":
        about = {"system": model.recipe.system, "shape": vars(model.recipe.shape), "fixed": vars(fixed)}
        return f"ONNX, images equal to {save_onnx(generator, fixed, out, about):.1g}"
    write_folder(model.snapshot, out, model.path.name)
    return "a folder for the Hugging Face hub"


if __name__ == "__main__":
    sys.exit(main())
