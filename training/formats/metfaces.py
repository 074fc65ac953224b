"""MetFaces: images/*.png, and metfaces.json with title, artist and face of each.

Source: Karras et al., Training Generative Adversarial Networks with Limited Data, NeurIPS 2020.
"""

import json
from pathlib import Path

from torch_utils.command_line import UserError
from training.formats.format import Format, SourceOptions
from training.image_source import Attributes, Labels, Source, keep_images, list_folder

DESCRIPTION = "metfaces.json"
KEPT = ("obj_id", "title", "artist_display_name", "face_idx")
CREDITS = {
    "attribution": (
        "MetFaces by NVIDIA Corporation, https://github.com/NVlabs/metfaces-dataset, CC BY-NC 2.0; source images by "
        "the Metropolitan Museum of Art, CC0. Changes: resized as the rest of this file says."
    ),
    "license": "CC-BY-NC-2.0",
}


def recognises(path: Path) -> bool:
    return (path / DESCRIPTION).is_file() and (path / "images").is_dir()


def open_metfaces(path: Path, options: SourceOptions) -> Source:
    source = Source(path, labels=Labels("none: MetFaces has none"), described=dict(CREDITS))
    folder = path / "images"
    if not folder.is_dir():
        raise UserError(f"--format=metfaces: {path} has no images/; expected images/*.png and perhaps {DESCRIPTION}")
    keep_images(source, list_folder(folder, source.refused, "images/"))
    if (path / DESCRIPTION).is_file():
        source.attributes = _read(path / DESCRIPTION, {file.name for file in source.files})
    return source


def _read(path: Path, names: set[str]) -> dict[str, Attributes]:
    try:
        entries = json.loads(path.read_bytes())
        return {
            entry["image_path"]: {key: entry[key] for key in KEPT if isinstance(entry.get(key), str | int)}
            for entry in entries
            if entry["image_path"] in names
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} can't be read ({error!r}); mend or remove it") from None


FORMAT = Format("metfaces", f"images/*.png and {DESCRIPTION}", recognises, open_metfaces, looser=True)
