"""COCO and COCO-Stuff: train2017/, val2017/ and annotations/{instances,stuff}_{train,val}2017.json.

An image has a set of categories, not a class. Every image gets the attribute `classes`; an image of val also gets
`combination`: 'seen' when exactly its set of categories occurs in an image of train, else 'unseen'.

The protocol of layout-to-image work, which the COCO-Stuff numbers of IC-GAN follow, is switched on by --objects=3-8
and --min-object-area=0.02: images with 3 to 8 objects whose bounding boxes each cover more than 2 % of the image;
crowds and the stuff category 'other' (all that is a thing) are no objects; only images with stuff annotations count.
Of val the first 1,024 such images, in the order of the annotations, served for validation and the rest for evaluation:
attribute `part`.

Source: Johnson et al., Image Generation from Scene Graphs, CVPR 2018, section 4; Caesar et al., COCO-Stuff, CVPR 2018.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch_utils.command_line import UserError
from training.formats.format import Format, SourceOptions, choose_split
from training.image_source import Attributes, Labels, Source, SourceFile, is_inside, shown

SPLITS = ("train", "val")
NO_OBJECT = "other"
NUM_VALIDATION = 1024
# The polygons and run lengths of the masks are most of an annotation file; they are dropped while it is parsed.
KEPT = {"images", "annotations", "categories", "id", "file_name", "width", "height", "image_id", "category_id"} | {
    "bbox",
    "iscrowd",
    "name",
}


@dataclass
class Annotations:
    """What the files say about one split; images in their order there."""

    names: dict[int, str] = field(default_factory=dict)  # image id -> file name
    sizes: dict[int, int] = field(default_factory=dict)  # image id -> pixels
    objects: dict[int, list[tuple[int, float, bool]]] = field(default_factory=dict)  # category, area of box, crowd
    with_stuff: set[int] = field(default_factory=set)
    categories: dict[int, str] = field(default_factory=dict)


def recognises(path: Path) -> bool:
    return any(_file(path, "instances", split).is_file() for split in SPLITS)


def open_coco(path: Path, options: SourceOptions) -> Source:
    there = [split for split in SPLITS if _file(path, "instances", split).is_file() and _images(path, split).is_dir()]
    split = choose_split(path, options.split, there)
    annotations = _read(path, split)
    chosen = _classes_of_images(annotations, options)
    if not chosen:
        raise UserError(f"--source={path}: no image of {split} has as many objects as asked; change --objects")

    source = Source(path, split=split)
    rows: dict[str, Attributes] = {annotations.names[image]: {"classes": ids} for image, ids in chosen.items()}
    if split == "val" and options.objects is not None:
        for position, row in enumerate(rows.values()):
            row["part"] = "validation" if position < NUM_VALIDATION else "evaluation"
    stuff = "things and stuff" if annotations.with_stuff else "things only: there is no stuff file"
    decision = f"none: an image has several categories, kept as the attribute classes ({stuff})"
    if split == "val" and _file(path, "instances", "train").is_file():
        in_train = {tuple(ids) for ids in _classes_of_images(_read(path, "train"), options).values()}
        for row, ids in zip(rows.values(), chosen.values(), strict=True):
            row["combination"] = "seen" if tuple(ids) in in_train else "unseen"
        num_seen = sum(row["combination"] == "seen" for row in rows.values())
        decision += f"; {num_seen:,} images have a combination seen in train, {len(rows) - num_seen:,} an unseen one"
    folder = _images(path, split)
    source.files = [SourceFile(f"{folder.name}/{name}", str(folder / name)) for name in sorted(rows)]
    source.attributes = {f"{folder.name}/{name}": row for name, row in rows.items()}
    source.labels = Labels(decision)
    source.described["categories"] = {str(key): name for key, name in sorted(annotations.categories.items())}
    return source


def _classes_of_images(annotations: Annotations, options: SourceOptions) -> dict[int, list[int]]:
    """Image id -> sorted categories of its objects, for the images that the options ask for."""
    protocol = options.objects is not None or options.min_object_area is not None
    fewest, most = options.objects or (0, 1 << 31)
    least_area = options.min_object_area or 0.0
    chosen = {}
    for image in annotations.names:
        if protocol and annotations.with_stuff and image not in annotations.with_stuff:
            continue
        objects = [
            category
            for category, area, is_crowd in annotations.objects.get(image, [])
            if annotations.categories.get(category) != NO_OBJECT
            and not (protocol and (is_crowd or area <= least_area * annotations.sizes[image]))
        ]
        if fewest <= len(objects) <= most:
            chosen[image] = sorted(set(objects))
    return chosen


def _read(path: Path, split: str) -> Annotations:
    """Instances, and stuff where there is a file of it."""
    found = Annotations()
    for kind in ("instances", "stuff"):
        file = _file(path, kind, split)
        if kind == "stuff" and not file.is_file():
            continue
        try:
            content = json.loads(file.read_bytes(), object_hook=_shrink)
            _add(found, content, is_stuff=kind == "stuff")
        except OSError as error:
            raise UserError(f"{file} can't be read ({error.strerror}); check it") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{file} is no COCO annotation file ({error!r}); get it again") from None
        if kind == "instances":
            _check_names(found, file)
    return found


def _check_names(found: Annotations, file: Path) -> None:
    """Each image has a file of its own, in the folder of the split."""
    seen: set[str] = set()
    for name in found.names.values():
        if not isinstance(name, str) or not is_inside(name):
            raise UserError(f"{file}: the file_name {shown(str(name))[:80]} leaves the folder of images; mend it")
        if name in seen:
            raise UserError(f"{file}: two images have the file_name {shown(name)[:80]}; expected a name each")
        seen.add(name)


def _add(found: Annotations, content: dict[str, Any], is_stuff: bool) -> None:
    found.categories |= {entry["id"]: entry["name"] for entry in content["categories"]}
    for entry in content["images"]:
        if not is_stuff:
            found.names[entry["id"]] = entry["file_name"]
            found.sizes[entry["id"]] = entry["width"] * entry["height"]
    for entry in content["annotations"]:
        _, _, width, height = entry["bbox"]
        described = (entry["category_id"], width * height, bool(entry.get("iscrowd")))
        found.objects.setdefault(entry["image_id"], []).append(described)
        if is_stuff:
            found.with_stuff.add(entry["image_id"])


def _shrink(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key in KEPT}


def _file(path: Path, kind: str, split: str) -> Path:
    return path / "annotations" / f"{kind}_{split}2017.json"


def _images(path: Path, split: str) -> Path:
    """Beside the annotations, or in images/."""
    nested = path / "images" / f"{split}2017"
    return nested if nested.is_dir() else path / f"{split}2017"


FORMAT = Format(
    "coco",
    "annotations/instances_train2017.json or ..val2017.json, beside train2017/ and val2017/",
    recognises,
    open_coco,
    options=("split", "objects", "min_object_area"),
)
