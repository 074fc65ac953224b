"""Features that the user made: a .npy or .npz file, its rows matched to the images of a data set."""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from torch_utils.command_line import UserError
from torch_utils.files import sha256
from training.dataset import ImageFolderDataset

BLOCK = 1024  # rows checked at a time: 16 MiB of float64 at 2048 wide
REMEDY = "expected floating-point rows [N, d], one for each image"


@dataclass(frozen=True)
class FeatureFile:
    """Features of every image of a data set, from a file of the user's, mapped and not read into memory.

    Either .npy [N, d] in the order of the sorted names of the images; or, with names, in any order: a text file
    `<stem>.names.txt` beside it with one name a line, or .npz with `features`, `names` and, if wanted,
    `features_mirror` (of the horizontally flipped images). Names are those in the zip or folder of the data set.

    Args:
        features: float16, 32 or 64 [M, d], M >= N, not yet of unit length.
        mirror: the same of the flipped images, or None.
        order: int64 [N], for image i its row.
        description: JSON of kind `file`; see `Extractor`.
    """

    path: Path
    features: np.ndarray
    mirror: np.ndarray | None
    order: np.ndarray
    description: dict[str, Any]

    @classmethod
    def open(
        cls,
        path: Path,
        dataset: ImageFolderDataset,
        mirror_path: Path | None = None,
        flag: str = "--extractor-weights",
    ) -> Self:
        """Open and check a file: every row is looked at once.

        Args:
            mirror_path: .npy of the flipped images, its rows in the order of `path`.
            flag: what the user gave the path with, for errors.

        Raises:
            UserError: no such array, other rows than images, names that do not match, values without direction.
        """
        where = f"{flag}={path}"
        arrays = feature_arrays(path, where)
        if "features" not in arrays:
            raise UserError(f"{where} has no array 'features' (it has {', '.join(arrays) or 'none'}); {REMEDY}")
        features, mirror = arrays["features"], arrays.get("features_mirror")
        if mirror_path is not None:
            mirror = feature_arrays(mirror_path, str(mirror_path)).get("features", np.empty(0))
        _check_array(features, where)
        names = names_of_rows(path, arrays, len(features), where)
        order = _by_position(features, dataset, where) if names is None else _by_name(names, dataset, where)
        row_names = dataset.names if names is None else names
        _check_rows(features, row_names, where)
        if mirror is not None:
            where = f"{mirror_path}" if mirror_path else f"{where}, features_mirror"
            _check_array(mirror, where)
            if mirror.shape != features.shape:
                raise UserError(f"{where} is {list(mirror.shape)}, the features are {list(features.shape)}; make alike")
            _check_rows(mirror, row_names, where)
        description = {
            "name": "file",
            "h_dim": features.shape[1],
            "file": path.name,
            **identity(path),
            "rows": "by position" if names is None else "by name",
            "mirror": mirror is not None,
        }
        if names is not None:
            description["order_sha256"] = _digest(order)
        if mirror_path is not None:
            description["mirror_sha256"] = sha256(mirror_path)
        return cls(path, features, mirror, order, description)

    @property
    def h_dim(self) -> int:
        return int(self.features.shape[1])

    @property
    def has_mirror(self) -> bool:
        return self.mirror is not None

    def __len__(self) -> int:
        """Images of the data set."""
        return len(self.order)

    def rows(self, ids: Sequence[int] | np.ndarray, mirror: bool = False) -> np.ndarray:
        """Features of images, float32 [n, d] of unit length.

        Raises:
            ValueError: features of mirror images asked for, and the file has none.
        """
        array = self.mirror if mirror else self.features
        if array is None:
            raise ValueError(f"{self.path} has no features of mirror images")
        block = _float64(array[self.order[np.asarray(ids)]])
        return (block / _lengths(block)[:, None]).astype(np.float32)


def identity(path: Path) -> dict[str, str]:
    """What tells a file of features from others: its SHA-256, and that of the names beside it.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"--instance-feats={path} does not exist; expected a .npy or .npz file of features")
    names = _sidecar(path)
    return {"sha256": sha256(path)} | ({"names_sha256": sha256(names)} if names.is_file() else {})


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.stem}.names.txt")


def feature_arrays(path: Path, where: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz (`h` where it has no `features`), or that of a .npy as `features`; mapped where possible."""
    if not path.is_file():
        raise UserError(f"{where} does not exist; expected a .npy or .npz file of features")
    try:
        if not zipfile.is_zipfile(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return {"features": array}
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged:
                raise UserError(f"{where}: {damaged} is damaged (checksum); make the file again")
            first = "features.npy" if "features.npy" in archive.namelist() else "h.npy"
            return {
                info.filename.removesuffix(".npy"): _member(path, archive, info)
                for info in archive.infolist()
                if info.filename in (first, "features_mirror.npy", "names.npy")
            }
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, struct.error):
        raise UserError(f"{where} can't be read as .npy or .npz: damaged, or of Python objects; {REMEDY}") from None


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array of a .npz: mapped where it is stored as it is (`np.savez`), read where it is compressed."""
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # the local header says how long name and extra field are
        name_length, extra_length = struct.unpack("<HH", file.read(4))
        file.seek(info.header_offset + 30 + name_length + extra_length)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _check_array(features: np.ndarray, where: str) -> None:
    if features.ndim != 2 or features.dtype.kind != "f" or features.dtype.itemsize > 8 or not features.size:
        remedy = "; convert it with .astype(np.float32)" if features.dtype.kind in "iub" else ""
        raise UserError(f"{where} holds {features.dtype} of shape {list(features.shape)}; {REMEDY}{remedy}")


def names_of_rows(path: Path, arrays: dict[str, np.ndarray], count: int, where: str) -> list[str] | None:
    """Names of the rows: in the .npz, or in `<stem>.names.txt` beside the file, or none."""
    sidecar = _sidecar(path)
    if "names" in arrays:
        if arrays["names"].dtype.kind not in "US" or arrays["names"].ndim != 1:
            raise UserError(
                f"{where}: names are {arrays['names'].dtype}; expected a list of text, np.array([...], str)"
            )
        given, source = arrays["names"].astype(str).tolist(), f"{where}, names"
    elif sidecar.is_file():
        try:
            given, source = sidecar.read_text(encoding="utf-8").rstrip("\n").split("\n"), str(sidecar)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{sidecar} can't be read ({error}); expected one name a line, in UTF-8") from None
    else:
        return None
    if len(given) != count:
        raise UserError(f"{source}: {len(given)} names, but {where} has {count} rows; expected one name for each")
    return given


def _by_position(features: np.ndarray, dataset: ImageFolderDataset, where: str) -> np.ndarray:
    if len(features) != len(dataset):
        subset = " of the subset" if dataset.is_subset else ""
        raise UserError(
            f"{where} has {len(features)} rows, --data={dataset.path} has {len(dataset)} images{subset}; expected one "
            "row for each, or rows with names: a text file <stem>.names.txt beside it, one name a line"
        )
    return np.arange(len(features))


def _by_name(names: list[str], dataset: ImageFolderDataset, where: str) -> np.ndarray:
    row_of = {name: row for row, name in enumerate(names)}
    if len(row_of) != len(names):
        twice = next(name for row, name in enumerate(names) if row_of[name] != row)
        raise UserError(f"{where} names {twice!r} twice; expected each image once")
    missing = [name for name in dataset.names if name not in row_of]
    if missing:
        raise UserError(
            f"{where} has no row for {missing[0]!r} of --data={dataset.path} ({len(missing)} of {len(dataset)} images "
            "lack one); make the features of all images, or mend the names"
        )
    if not dataset.is_subset:  # of a subset the rest of the data set is known to the file
        wanted = set(dataset.names)
        unknown = [name for name in names if name not in wanted]
        if unknown:
            raise UserError(
                f"{where} has a row for {unknown[0]!r}, which --data={dataset.path} has not ({len(unknown)} such "
                "rows); leave it out, or mend the names"
            )
    return np.array([row_of[name] for name in dataset.names])


def _check_rows(features: np.ndarray, names: Sequence[str], where: str) -> None:
    """Refuse rows that have no direction."""
    for start in range(0, len(features), BLOCK):
        lengths = _lengths(_float64(features[start : start + BLOCK]))
        bad = ~((lengths > 0) & np.isfinite(lengths))
        if bad.any():
            row = start + int(bad.argmax())
            what = "is zero" if lengths[row - start] == 0 else "holds NaN or infinity"
            raise UserError(
                f"{where}: row {row} ({names[row]}) {what}; a feature needs a direction. Make it again, or leave the "
                "image out of the data"
            )


def _float64(block: np.ndarray) -> np.ndarray:
    """In rows one after another, whatever the order in the file, so that sums come out the same."""
    return np.ascontiguousarray(block, dtype=np.float64)


def _lengths(block: np.ndarray) -> np.ndarray:
    """float64 [n]; NaN or infinity where a value is, and beyond 1e154."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.sqrt((block * block).sum(axis=1)))


def _digest(order: np.ndarray) -> str:
    return hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
