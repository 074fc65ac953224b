"""Which class an image of a source has, and which of its images are wanted."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch_utils.command_line import UserError, nearest
from training.image_source import ImageFile, Labels, Source, class_folders, class_numbers, first_of, shown

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}  # folders that are not classes
MODES = ("auto", "folders", "none")


def decide_labels(source: Source, mode: str) -> Labels:
    """The class of every image: what its format says, else its dataset.json, else its top-level folders, else none.

    Folders that all images share are passed over. Class numbers are the positions of the sorted folder names, the order
    of torchvision's ImageFolder.

    Args:
        mode: 'auto'; 'folders': these or an error; 'none'; or an attribute, whose values become the classes.

    Raises:
        UserError: labels were asked for and are not there, or those in dataset.json are incomplete.
    """
    attributes = attribute_names(source)
    if mode == "none":
        return Labels("none (--labels=none)")
    if mode not in MODES and mode not in attributes:
        known = [*MODES, *attributes]
        raise UserError(f"--labels={mode} is not one of {', '.join(known)}.{nearest(mode, known)}")
    if mode not in MODES:
        return _labels_from_attribute(source, mode)
    if mode == "auto" and source.labels is not None:
        return source.labels
    if mode == "auto" and source.metadata is not None:
        return _labels_from_metadata(source, source.metadata)
    return _labels_from_folders(source, required=mode == "folders")


def attribute_names(source: Source) -> list[str]:
    """The attributes that at least one image has, sorted."""
    return sorted({key for row in source.attributes.values() for key in row})


def labels_of_words(words: Mapping[str, str], decision: str, class_names: Sequence[str] | None = None) -> Labels:
    """The class names are the sorted words, or those given; `{}` in `decision` becomes how many there are."""
    names = list(class_names or sorted(set(words.values())))
    numbers = {name: i for i, name in enumerate(names)}
    by_name = {name: numbers[word] for name, word in words.items()}
    return Labels(decision.format(len(names)), by_name, len(names), names)


def _labels_from_folders(source: Source, required: bool) -> Labels:
    inside = class_folders(source.files).by_name
    names = sorted(set(inside.values()))
    why_not = None
    if not names:
        why_not = "the images are not sorted into sub-folders"
    elif len(inside) < len(source.files):
        outside = next(file.name for file in source.files if file.name not in inside)
        why_not = f"{shown(outside)} is in none of the folders {first_of(names)}"
    elif not required and all(re.fullmatch(r"\d{5}", name) for name in names):
        why_not = f"the folders {first_of(names)} look like numbered parts; --labels=folders makes them classes"
    elif not required and all(name.lower() in SPLIT_NAMES for name in names):
        why_not = f"the folders {first_of(names)} look like splits: convert one at a time, or --labels=folders"
    if why_not and required:
        raise UserError(f"--labels=folders: {why_not}; expected all images of {source.path} in two or more sub-folders")
    if why_not:
        return Labels(f"none, because {why_not}")
    labels = labels_of_words(inside, "")
    labels.decision = f"{len(names)} classes from the top-level folders: {first_of(names)}"
    return labels


def _labels_from_metadata(source: Source, metadata: dict[str, Any]) -> Labels:
    """Class numbers, or one-hot lists, from the dataset.json of the source."""
    if metadata.get("labels") is None:
        return Labels("none, as in the dataset.json of the source")
    where = f"--source={source.path}: its dataset.json"
    remedy = "mend it, or convert with --labels=folders or --labels=none"
    by_name, num_classes = class_numbers(metadata, [file.name for file in source.files], where, remedy)
    names = metadata.get("class_names")
    class_names = names if isinstance(names, list) and len(names) == num_classes else None
    return Labels(f"{num_classes} classes from the dataset.json of the source", by_name, num_classes, class_names)


def _labels_from_attribute(source: Source, key: str) -> Labels:
    """Images that lack the attribute get no class; `select_files` sees to it that they are left out."""
    values = {name: row[key] for name, row in source.attributes.items() if key in row}
    several = next((name for name, value in values.items() if isinstance(value, list)), None)
    if several is not None:
        raise UserError(f"--labels={key}: {shown(several)} has several values as {key}; expected one for every image")
    numeric = all(isinstance(value, int | float) for value in values.values())
    names = [str(value) for value in sorted(set(values.values()), key=float if numeric else str)]  # type: ignore
    words = {name: str(value) for name, value in values.items()}
    return labels_of_words(words, f"{{}} classes from the attribute {key}", class_names=names)


# -- Which images are wanted -------------------------------------------------------------------------------------------


def select_files(source: Source, labels: Labels, only: Sequence[str], skip: Sequence[str]) -> list[ImageFile]:
    """The images that have one of the values of every attribute of `only`, and none of those of `skip`.

    Args:
        only, skip: 'attribute=value,value'; `class` stands for the class. Of a list (COCO's classes) one value counts.
            Given twice for one attribute, the values add up.

    Raises:
        UserError: no such attribute or value (the nearest is named), or no image is left.
    """
    files = list(source.files)
    for flag, texts in (("--only", only), ("--skip", skip)):
        wanted: dict[str, set[str]] = {}
        for text in texts:
            key, values = _parse_filter(source, labels, flag, text)
            wanted.setdefault(key, set()).update(values)
        for key, values in wanted.items():
            files = [
                file
                for file in files
                if bool(values & set(_values(source, labels, file.name, key))) == (flag == "--only")
            ]
    if not files:
        given = " ".join([f"--only {text}" for text in only] + [f"--skip {text}" for text in skip])
        raise UserError(f"{given}: no image of {source.path} is left; change the filter")
    without = next(
        (file.name for file in files if labels.by_name is not None and file.name not in labels.by_name), None
    )
    if without is not None:
        raise UserError(
            f"{shown(without)} has no class ({labels.decision}); expected one for every image: leave those without out "
            "with --only or --skip, or give --labels=none"
        )
    return files


def _parse_filter(source: Source, labels: Labels, flag: str, text: str) -> tuple[str, set[str]]:
    key, equals, rest = text.partition("=")
    known = attribute_names(source) + (["class"] if labels.by_name is not None else [])
    if not equals or not rest:
        raise UserError(f"{flag}={text}; expected for example {flag} {known[0] if known else 'class'}=value,value")
    if key not in known:
        there = ", ".join(known) or "none"
        raise UserError(f"{flag}={text}: there is no attribute {key!r}; there are: {there}.{nearest(key, known)}")
    values = {value for file in source.files for value in _values(source, labels, file.name, key)}
    if key == "class":  # a class without images is a class
        values |= set(labels.class_names or map(str, range(labels.num_classes)))
    if rest in values:
        return key, {rest}  # a value may hold a comma
    words = rest.split(",")
    for word in words:
        if word not in values:
            raise UserError(
                f"{flag}={text}: no image has {key}={word}; there are: {first_of(sorted(values))}."
                f"{nearest(word, values)}"
            )
    return key, set(words)


def _values(source: Source, labels: Labels, name: str, key: str) -> list[str]:
    """The values of an attribute of an image, as words."""
    if key == "class":
        number = (labels.by_name or {}).get(name)
        return [] if number is None else [labels.class_names[number] if labels.class_names else str(number)]
    value = source.attributes.get(name, {}).get(key)
    return [] if value is None else [str(item) for item in (value if isinstance(value, list) else [value])]
