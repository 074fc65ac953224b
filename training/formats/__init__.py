"""The table of formats that `dataset_tool.py convert` reads. A new one is a file here and a line in the table."""

from pathlib import Path

from torch_utils.command_line import UserError
from training.formats import (
    cifar,
    cityscapes,
    coco,
    folder,
    font,
    imagenet,
    imagenet_lt,
    lsun,
    metfaces,
    mnist,
    pacs,
    parquet,
    sketches,
)
from training.formats.format import FLAGS, Format, SourceOptions
from training.image_source import Source

__all__ = ["FORMATS", "SourceOptions", "open_format"]

# In the order in which 'auto' tries them: the first that recognises the path; a plain folder or zip in the end.
FORMATS = {
    one.name: one
    for one in (
        font.FORMAT,
        mnist.FORMAT,
        cifar.FORMAT,
        imagenet_lt.FORMAT,
        imagenet.FORMAT,
        coco.FORMAT,
        cityscapes.FORMAT,
        metfaces.FORMAT,
        pacs.FORMAT,
        sketches.FORMAT,
        lsun.FORMAT,
        parquet.FORMAT,
        folder.FORMAT,
    )
}


def open_format(path: Path, name: str, options: SourceOptions) -> tuple[Source, str]:
    """Open a source.

    Args:
        name: a key of FORMATS, or 'auto' to recognise it by its structure.

    Returns:
        The source, and a sentence on what it was recognised as ('' where there is nothing to say).

    Raises:
        UserError: missing, not of this format, an option that does not count with it, or what its reader objects to.
    """
    if not path.exists():
        raise UserError(f"--source={path} does not exist; expected a folder or a zip of images, or one of the formats")
    sentence = ""
    if name == "auto":
        form = _recognise(path, options)
        if form is not folder.FORMAT:
            sentence = f"Recognised as {form.name} ({form.layout}); if it is something else, give --format."
    else:
        form = FORMATS[name]
        if not form.looser and not form.recognises(path):
            raise UserError(f"--format={name}: {path} does not look like it; expected {form.layout}")
    _check_options(form, options)
    source = form.open(path, options)
    source.format = form.name
    return source, sentence


def _recognise(path: Path, options: SourceOptions) -> Format:
    try:
        return next(form for form in FORMATS.values() if form.fits(options) and form.recognises(path))
    except OSError as error:
        raise UserError(f"--source={path} can't be read ({error.strerror or error}); check its permissions") from None


def _check_options(form: Format, options: SourceOptions) -> None:
    for field, flag in FLAGS.items():
        if getattr(options, field) is not None and field not in form.options:
            names = [one.name for one in FORMATS.values() if field in one.options]
            raise UserError(
                f"{flag} counts with the formats {', '.join(sorted(names))}, but the source is read as {form.name}; "
                f"drop {flag}, or give another --format"
            )
