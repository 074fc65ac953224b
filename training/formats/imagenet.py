"""ImageNet (ILSVRC 2012): folders of synsets, in one of the layouts in which it is handed around.

    train/n01440764/*.JPEG, val/n01440764/*.JPEG        as sorted by most training scripts
    ILSVRC/Data/CLS-LOC/{train,val}                     as packed for Kaggle; val flat, LOC_val_solution.csv labels it
    val/*.JPEG and a list of "name label" lines         val.txt beside it, or --list; numbers or synsets

Class numbers are positions in the sorted synsets of train, so that train and val agree even when val lacks a class.
"""

import re
from pathlib import Path

from torch_utils.command_line import UserError
from training.formats.format import Format, SourceOptions, choose_split, sub_folders
from training.image_source import Labels, Source, class_folders, keep_images, list_folder, shown
from training.labelling import labels_of_words

SYNSET = re.compile(r"n\d{8}")
NESTED = "ILSVRC/Data/CLS-LOC"
SPLITS = ("train", "val")
MAPPING = "LOC_synset_mapping.txt"  # "n01440764 tench, Tinca tinca"
SOLUTION = "LOC_val_solution.csv"  # "ILSVRC2012_val_00048981,n03995372 85 1 499 272": synset and boxes
LISTS = ("val.txt", "val/val.txt", "val_list.txt", "val_labels.txt")


def data_folder(path: Path) -> Path:
    """The folder that holds train/ and val/."""
    return path / NESTED if (path / NESTED).is_dir() else path


def recognises(path: Path) -> bool:
    data = data_folder(path)
    if data != path:
        return True
    return any((data / split).is_dir() and _has_synsets(data / split) for split in SPLITS) or (
        (path / "val").is_dir() and _find_beside(path, SOLUTION) is not None
    )


def open_imagenet(path: Path, options: SourceOptions) -> Source:
    data = data_folder(path)
    split = choose_split(path, options.split, [name for name in SPLITS if (data / name).is_dir()])
    source = Source(path, split=split)
    keep_images(source, list_folder(data / split, source.refused, f"{split}/"))
    synsets, where = train_synsets(path)

    # Images that share all folders are of one class.
    words = class_folders(source.files).by_name or {file.name: file.name.split("/")[-2] for file in source.files}
    decision = f"{{}} synsets ({where})"
    if len(words) < len(source.files) or not all(SYNSET.fullmatch(word) for word in words.values()):
        words, listed = _labels_of_flat_val(path, options.list_file, synsets)
        decision += f", labels of {split}/ from {listed}"
    elif options.list_file is not None:
        raise UserError(
            f"--list={options.list_file}: {data / split} is sorted into synsets already; drop --list, "
            "or give --format=imagenet-lt for a list of some of its images"
        )
    synsets = synsets or sorted(set(words.values()))
    source.labels = _label(source, words, synsets, decision)
    descriptions = _descriptions(path)
    if descriptions:
        source.described["class_descriptions"] = [descriptions.get(synset, "") for synset in synsets]
    return source


def train_synsets(path: Path) -> tuple[list[str], str]:
    """The sorted synsets that number the classes, and a word on where they were found; [] when nothing says."""
    train = data_folder(path) / "train"
    if train.is_dir():
        return [name for name in sub_folders(train) if SYNSET.fullmatch(name)], "numbered by the folders of train"
    descriptions = _descriptions(path)
    if descriptions:
        return sorted(descriptions), f"numbered by {MAPPING}"
    return [], "numbered among themselves, for want of train/"


def _label(source: Source, words: dict[str, str], synsets: list[str], decision: str) -> Labels:
    kept, known = [], set(synsets)
    for file in source.files:
        synset = words.get(file.name) or words.get(file.name.rpartition("/")[2].partition(".")[0])
        if synset in known:
            words[file.name] = synset
            kept.append(file)
        else:
            source.refused[file.name] = f"its synset {synset} is not in train" if synset else "no label in the list"
    if not kept:
        name, reason = next(iter(source.refused.items()))
        raise UserError(f"--source={source.path}: no image has a label; the first, {shown(name)}: {reason}")
    source.files = kept
    return labels_of_words({file.name: words[file.name] for file in kept}, decision, synsets)


def _labels_of_flat_val(path: Path, list_file: Path | None, synsets: list[str]) -> tuple[dict[str, str], str]:
    """Name of an image without its ending -> synset."""
    solution = _find_beside(path, SOLUTION)
    found = find_list(path, list_file) if list_file else solution
    found = found or next((path / name for name in LISTS if (path / name).is_file()), None)
    if found is None:
        raise UserError(
            f"--source={path}: val/ is not sorted into synsets; expected {SOLUTION}, val.txt ('name label' lines), "
            "or --list=FILE"
        )
    separator = "," if found.suffix == ".csv" else None
    words = {}
    for number, line in enumerate(read_lines(found), start=1):
        name, *rest = line.split(separator)
        label = rest[0].split()[0] if rest and rest[0].split() else ""
        if separator and name == "ImageId":
            continue
        if label.isdecimal() and len(label) < 10 and int(label) < len(synsets):
            label = synsets[int(label)]
        if not SYNSET.fullmatch(label):
            of = f"a number below {len(synsets)}" if synsets else "(numbers need train/ or a synset mapping)"
            raise UserError(
                f"{found}: line {number} is {line[:60]!r}; expected a name and a label, a synset like n01440764 or {of}"
            )
        words[name.rpartition("/")[2].partition(".")[0]] = label
    return words, found.name


def find_list(path: Path, list_file: Path) -> Path:
    """Where --list lies: as given, from the working folder, or in the source.

    Raises:
        UserError: in neither.
    """
    for file in (list_file, path / list_file):
        if file.exists():
            return file
    places = "" if list_file.is_absolute() else f" in the working folder {Path.cwd()}, nor in {path}"
    raise UserError(f"--list={list_file} does not exist{places}; expected a text file of one line an image")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        UserError: it can't be read.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path} can't be read ({reason}); expected a text file of one line an image") from None


def _descriptions(path: Path) -> dict[str, str]:
    """Synset -> what it is called."""
    found = _find_beside(path, MAPPING)
    pairs = [line.partition(" ") for line in read_lines(found)] if found else []
    return {synset: words.strip() for synset, _, words in pairs if SYNSET.fullmatch(synset)}


def _find_beside(path: Path, name: str) -> Path | None:
    """In the root, or where the root is CLS-LOC itself, at the top of what was unpacked."""
    return next((folder / name for folder in (path, *path.resolve().parents[:3]) if (folder / name).is_file()), None)


def _has_synsets(folder: Path) -> bool:
    return any(SYNSET.fullmatch(entry.name) for entry in folder.iterdir())


FORMAT = Format(
    "imagenet",
    f"train/ and val/ of synset folders such as n01440764, or {NESTED}",
    recognises,
    open_imagenet,
    options=("split", "list_file"),
)
