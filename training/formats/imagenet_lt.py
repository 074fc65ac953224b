"""ImageNet-LT: a long-tailed subset of ImageNet, given as a list of files and labels.

Source: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019; 115,846 training images of 1,000
classes with 1,280 to 5 images each. Lines are "train/n01440764/n01440764_190.JPEG 0".
"""

from pathlib import Path

from torch_utils.command_line import UserError
from training.formats import imagenet
from training.formats.format import Format, SourceOptions, choose_split
from training.image_source import MAX_CLASSES, Labels, Source, SourceFile, is_inside, shown

LIST = "ImageNet_LT_{split}.txt"
SPLITS = ("train", "val", "test")


def recognises(path: Path) -> bool:
    return imagenet.recognises(path) and (imagenet.data_folder(path) / "train").is_dir()


def fits(options: SourceOptions) -> bool:
    """Lists that lie in ImageNet do not make it the subset. With --list alone nothing else can be meant."""
    return options.list_file is not None and options.split is None


def open_imagenet_lt(path: Path, options: SourceOptions) -> Source:
    if options.list_file is not None and options.split is not None:
        raise UserError(f"--split={options.split} and --list={options.list_file} both say which images; give one")
    list_file, split = options.list_file, None
    if list_file is None:
        there = [name for name in SPLITS if _list_of(path, name).is_file()]
        if not there:
            raise UserError(f"--format=imagenet-lt needs --list=ImageNet_LT_train.txt, or that file in {path}")
        split = choose_split(path, options.split, there)
        list_file = _list_of(path, split)
    list_file = imagenet.find_list(path, list_file)
    data = imagenet.data_folder(path)
    numbers = _read_list(list_file)
    outside = next((name for name in numbers if not is_inside(name)), None)
    if outside is not None:
        raise UserError(f"--list={list_file} names {shown(outside)[:80]}, which is outside {data}; mend the list")
    if not any((data / name).is_file() for name in numbers):
        raise UserError(
            f"--list={list_file} names {next(iter(numbers))} and {len(numbers) - 1:,} more, none of them in {data}; "
            "expected the root of ImageNet as --source"
        )
    files = [SourceFile(name, str(data / name)) for name in sorted(numbers)]
    return Source(path, files, split=split, labels=_labels(path, numbers, list_file.name))


def _read_list(path: Path) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for number, line in enumerate(imagenet.read_lines(path), start=1):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise UserError(
                f"--list={path}: line {number} is {line[:60]!r}; expected 'train/n01440764/n01440764_190.JPEG 0'"
            )
        if len(label) > 9 or int(label) >= MAX_CLASSES:
            raise UserError(
                f"--list={path}: line {number} has the class {label[:20]}; expected less than {MAX_CLASSES:,}"
            )
        if numbers.setdefault(name.strip(), int(label)) != int(label):
            raise UserError(f"--list={path}: line {number} gives {name} another label than a line before; mend it")
    if not numbers:
        raise UserError(f"--list={path} is empty; expected lines such as 'train/n01440764/n01440764_190.JPEG 0'")
    return numbers


def _labels(path: Path, numbers: dict[str, int], list_name: str) -> Labels:
    """Numbers as the list has them; names from the folders when every class has one folder."""
    synsets, _ = imagenet.train_synsets(path)
    num_classes = max(max(numbers.values()) + 1, len(synsets))
    folders: dict[int, set[str]] = {}
    for name, label in numbers.items():
        folders.setdefault(label, set()).add(name.split("/")[-2] if "/" in name else "")
    names = dict(enumerate(synsets)) if len(synsets) == num_classes else {}
    agree = all(len(words) == 1 and names.get(label, *words) in words for label, words in folders.items())
    names |= {label: next(iter(words)) for label, words in folders.items()}
    class_names = [names[label] for label in range(num_classes)] if agree and len(names) == num_classes else None
    return Labels(f"{num_classes} classes as numbered in {list_name}", numbers, num_classes, class_names)


def _list_of(path: Path, split: str) -> Path:
    return path / LIST.format(split=split)


FORMAT = Format(
    "imagenet-lt",
    "ImageNet and lists such as ImageNet_LT_train.txt, in it or as --list",
    recognises,
    open_imagenet_lt,
    options=("split", "list_file"),
    looser=True,
    fits=fits,
)
