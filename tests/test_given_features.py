from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pattern_images, write_zip

from stylegan2_icgan.extractors.given_features import FeatureFile
from stylegan2_icgan.features import made_alike
from torch_utils.command_line import UserError
from training.dataset import ImageFolderDataset

COUNT, WIDTH = 12, 5


@pytest.fixture
def dataset(tmp_path: Path) -> ImageFolderDataset:
    return ImageFolderDataset(write_zip(tmp_path / "twelve.zip", pattern_images(COUNT)[0]))


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_rows_of_a_npy_belong_to_the_sorted_names(
    tmp_path: Path, dataset: ImageFolderDataset, features: np.ndarray, dtype: str
) -> None:
    stored = features.astype(dtype)
    np.save(tmp_path / "own.npy", stored)
    file = FeatureFile.open(tmp_path / "own.npy", dataset)
    assert (len(file), file.h_dim, file.has_mirror) == (COUNT, WIDTH, False)
    rows = file.rows([3, 0, 11])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, unit(stored.astype(np.float64))[[3, 0, 11]], atol=1e-6)
    assert isinstance(file.features, np.memmap)
    assert file.description["name"] == "file"
    assert file.description["h_dim"] == WIDTH
    with pytest.raises(ValueError, match="no features of mirror images"):
        file.rows([0], mirror=True)


def test_the_order_in_memory_and_the_block_do_not_change_a_bit(tmp_path: Path, dataset: ImageFolderDataset) -> None:
    wide = np.random.default_rng(0).normal(size=(COUNT, 300)).astype(np.float32)
    np.save(tmp_path / "c.npy", wide)
    np.save(tmp_path / "f.npy", np.asfortranarray(wide))
    by_row, by_column = (FeatureFile.open(tmp_path / name, dataset) for name in ("c.npy", "f.npy"))
    assert (by_row.rows(range(COUNT)) == by_column.rows(range(COUNT))).all()
    assert (by_row.rows(range(COUNT))[7] == by_row.rows([7])[0]).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_named_rows_are_found_in_any_order(
    tmp_path: Path, dataset: ImageFolderDataset, features: np.ndarray, save: Callable[..., None]
) -> None:
    order = np.random.default_rng(1).permutation(COUNT)
    names = np.array(dataset.names)[order]
    save(tmp_path / "own.npz", features=features[order], features_mirror=-features[order], names=names)
    file = FeatureFile.open(tmp_path / "own.npz", dataset)
    np.testing.assert_allclose(file.rows(range(COUNT)), unit(features), atol=1e-6)
    np.testing.assert_allclose(file.rows([4], mirror=True), -unit(features)[[4]], atol=1e-6)
    assert isinstance(file.features, np.memmap) == (save is np.savez)

    np.save(tmp_path / "plain.npy", features[order])
    np.save(tmp_path / "flipped.npy", -features[order])
    (tmp_path / "plain.names.txt").write_text("\n".join(names) + "\n")
    again = FeatureFile.open(tmp_path / "plain.npy", dataset, mirror_path=tmp_path / "flipped.npy")
    for mirror in (False, True):
        assert (again.rows(range(COUNT), mirror) == file.rows(range(COUNT), mirror)).all()


def test_a_subset_takes_its_own_rows_by_name_and_refuses_to_guess(
    tmp_path: Path, dataset: ImageFolderDataset, features: np.ndarray
) -> None:
    subset = ImageFolderDataset(dataset.path, max_images=5)
    np.save(tmp_path / "own.npy", features)
    with pytest.raises(UserError, match=r"has 12 rows, .* has 5 images of the subset; .*names\.txt"):
        FeatureFile.open(tmp_path / "own.npy", subset)
    (tmp_path / "own.names.txt").write_text("\n".join(dataset.names))
    kept = [dataset.names.index(name) for name in subset.names]
    rows = FeatureFile.open(tmp_path / "own.npy", subset).rows(range(5))
    np.testing.assert_allclose(rows, unit(features)[kept], atol=1e-6)


def test_description_tells_other_content_and_other_order_apart(
    tmp_path: Path, dataset: ImageFolderDataset, features: np.ndarray
) -> None:
    np.savez(tmp_path / "one.npz", features=features, names=dataset.names)
    one = FeatureFile.open(tmp_path / "one.npz", dataset).description
    (tmp_path / "renamed.npz").write_bytes((tmp_path / "one.npz").read_bytes())
    assert made_alike(one, FeatureFile.open(tmp_path / "renamed.npz", dataset).description)
    np.savez(tmp_path / "two.npz", features=features * 2, names=dataset.names)
    assert not made_alike(one, FeatureFile.open(tmp_path / "two.npz", dataset).description)
    np.save(tmp_path / "p.npy", features)
    described = []
    for names in (dataset.names, dataset.names[::-1]):
        (tmp_path / "p.names.txt").write_text("\n".join(names))
        described.append(FeatureFile.open(tmp_path / "p.npy", dataset).description)
    assert not made_alike(*described)


def refusal(path: Path, dataset: ImageFolderDataset, mirror_path: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        FeatureFile.open(path, dataset, mirror_path, flag="--feats")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.nan, "row 7 (00000/img00000007.png) holds NaN"),
        (np.inf, "row 7 (00000/img00000007.png) holds NaN"),
        (0, "row 7 (00000/img00000007.png) is zero"),
    ],
)
def test_rows_without_direction_are_named(
    tmp_path: Path, dataset: ImageFolderDataset, features: np.ndarray, value: float, expected: str
) -> None:
    bad = features.copy()
    bad[7, slice(None) if value == 0 else 2] = value
    np.save(tmp_path / "bad.npy", bad)
    np.save(tmp_path / "good.npy", features)
    message = refusal(tmp_path / "bad.npy", dataset)
    assert message.startswith(f"--feats={tmp_path / 'bad.npy'}: ")
    assert expected in message
    message = refusal(tmp_path / "good.npy", dataset, tmp_path / "bad.npy")
    assert message.startswith(f"{tmp_path / 'bad.npy'}: ")
    assert expected in message


def test_a_bad_row_behind_the_first_block_is_found(
    tmp_path: Path, dataset: ImageFolderDataset, features: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylegan2_icgan.extractors.given_features.BLOCK", 4)
    order = np.arange(COUNT)[::-1]
    features[2] = 0  # the tenth row of the file
    np.savez(tmp_path / "bad.npz", features=features[order], names=np.array(dataset.names)[order])
    assert "row 9 (00000/img00000002.png) is zero" in refusal(tmp_path / "bad.npz", dataset)


def test_arrays_of_another_kind_are_refused(tmp_path: Path, dataset: ImageFolderDataset, features: np.ndarray) -> None:
    def message(array: np.ndarray) -> str:
        np.save(tmp_path / "x.npy", array)
        return refusal(tmp_path / "x.npy", dataset)

    assert "has 11 rows, " in message(features[:-1])
    assert "has 12 images" in message(features[:-1])
    assert "holds int64 of shape [12, 5]" in message((features * 9).astype(np.int64))
    assert "astype(np.float32)" in message((features * 9).astype(np.int64))
    assert "holds float32 of shape [12]" in message(features[:, 0])
    assert "holds float32 of shape [12, 1, 5]" in message(features[:, None])
    assert "complex64" in message(features.astype(np.complex64))
    np.save(tmp_path / "good.npy", features)
    np.save(tmp_path / "narrow.npy", features[:, :2])
    assert "narrow.npy is [12, 2], the features are [12, 5]" in refusal(
        tmp_path / "good.npy", dataset, tmp_path / "narrow.npy"
    )
    np.savez(tmp_path / "other.npz", names=dataset.names)
    assert "no array 'features' (it has names)" in refusal(tmp_path / "other.npz", dataset)
    assert "holds float64 of shape [0]" in refusal(tmp_path / "good.npy", dataset, tmp_path / "other.npz")


def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, dataset: ImageFolderDataset, features: np.ndarray
) -> None:
    assert "does not exist" in refusal(tmp_path / "none.npy", dataset)
    np.save(tmp_path / "own.npy", features)
    np.savez(tmp_path / "own.npz", features=features)
    for whole in (tmp_path / "own.npy", tmp_path / "own.npz"):
        cut = whole.with_stem("cut")
        cut.write_bytes(whole.read_bytes()[:-40])
        assert "can't be read" in refusal(cut, dataset)
    content = bytearray((tmp_path / "own.npz").read_bytes())
    content[content.find(features[0].tobytes())] ^= 1
    (tmp_path / "flipped.npz").write_bytes(content)
    assert "features.npy is damaged (checksum)" in refusal(tmp_path / "flipped.npz", dataset)
    np.savez_compressed(tmp_path / "deflated.npz", features=features)
    content = bytearray((tmp_path / "deflated.npz").read_bytes())
    content[60:180] = bytes(byte ^ 0x5A for byte in content[60:180])
    (tmp_path / "deflated.npz").write_bytes(content)
    assert "can't be read" in refusal(tmp_path / "deflated.npz", dataset)
    np.save(tmp_path / "objects.npy", np.array([features, None], object), allow_pickle=True)
    assert "can't be read" in refusal(tmp_path / "objects.npy", dataset)
    np.savez(tmp_path / "objects.npz", features=np.array([features, None], object))
    assert "can't be read" in refusal(tmp_path / "objects.npz", dataset)
    (tmp_path / "empty.npy").write_bytes(b"")
    assert "can't be read" in refusal(tmp_path / "empty.npy", dataset)


def test_names_that_do_not_match_are_named(tmp_path: Path, dataset: ImageFolderDataset, features: np.ndarray) -> None:
    def message(names: list[str], rows: np.ndarray = features) -> str:
        np.savez(tmp_path / "x.npz", features=rows, names=names)
        return refusal(tmp_path / "x.npz", dataset)

    names = list(dataset.names)
    assert "has no row for '00000/img00000004.png'" in message([*names[:4], "a.png", "b.png", *names[6:]])
    assert "(2 of 12 images" in message([*names[:4], "a.png", "b.png", *names[6:]])
    longer = np.concatenate([features, features[:1]])
    assert "has a row for 'extra.png', which --data=" in message([*names, "extra.png"], longer)
    assert "names '00000/img00000003.png' twice" in message([*names, names[3]], longer)
    assert "11 names, but" in message(names[:-1])
    np.savez(tmp_path / "y.npz", features=features, names=np.arange(COUNT))
    assert "names are int64" in refusal(tmp_path / "y.npz", dataset)
    np.save(tmp_path / "z.npy", features)
    (tmp_path / "z.names.txt").write_text("\n".join(names[:-1]))
    assert f"{tmp_path / 'z.names.txt'}: 11 names" in refusal(tmp_path / "z.npy", dataset)
    (tmp_path / "z.names.txt").write_bytes(b"\xff\xfe\xfa")
    assert "in UTF-8" in refusal(tmp_path / "z.npy", dataset)
