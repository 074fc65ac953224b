"""A folder or zip of images: sub-folders are classes, or a dataset.json says."""

from pathlib import Path

from training.formats.format import Format, SourceOptions
from training.image_source import Source, open_source


def open_folder(path: Path, options: SourceOptions) -> Source:
    return open_source(path)


FORMAT = Format("folder", "a folder or a zip of images", lambda path: True, open_folder)
