"""PACS: <domain>/<class>/*, domains photo, art_painting, cartoon and sketch. The class is the label.

Source: Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017.
"""

from pathlib import Path

from torch_utils.command_line import UserError
from training.formats.format import Format, SourceOptions
from training.image_source import Source, keep_images, list_folder
from training.labelling import labels_of_words

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
NESTED = ("", "pacs", "PACS", "kfold", "pacs_data", "images")  # where copies of it keep the domains


def recognises(path: Path) -> bool:
    return path.is_dir() and _root(path) is not None


def open_pacs(path: Path, options: SourceOptions) -> Source:
    root = _root(path) or path
    source = Source(path)
    listed = [
        file
        for domain in DOMAINS
        if (root / domain).is_dir()
        for file in list_folder(root / domain, source.refused, f"{domain}/")
    ]
    keep_images(source, listed)
    outside = next((file.name for file in source.files if file.name.count("/") < 2), None)
    if outside is not None:
        raise UserError(f"--format=pacs: {outside} lies in no class; expected <domain>/<class>/image in {root}")
    parts = {file.name: file.name.split("/") for file in source.files}
    source.attributes = {name: {"domain": domain} for name, (domain, *_) in parts.items()}
    source.labels = labels_of_words({name: kind for name, (_, kind, *_) in parts.items()}, "{} classes of PACS")
    return source


def _root(path: Path) -> Path | None:
    """The folder that holds at least two of the domains."""
    roots = [path / name for name in NESTED]
    return next((root for root in roots if sum((root / domain).is_dir() for domain in DOMAINS) >= 2), None)


FORMAT = Format("pacs", f"two or more of the folders {', '.join(DOMAINS)}, with classes", recognises, open_pacs)
