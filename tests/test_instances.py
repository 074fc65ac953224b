import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pattern_images, write_zip

from stylegan2_icgan.instances import InstanceDataset
from stylegan2_icgan.making import StoreOptions, ensure_store
from stylegan2_icgan.store import open_store
from torch_utils.command_line import UserError
from training.dataset import Draws, ImageFolderDataset
from training.loading import fake_draws, real_draws
from training.randomness import hashed


def repeat(i: int, times: int) -> Draws:
    """The same instance drawn many times."""
    return Draws(np.full(times, i), hashed(0, np.arange(times)))


@pytest.fixture
def dataset(patterns_zip: Path) -> ImageFolderDataset:
    return ImageFolderDataset(patterns_zip, use_labels=True)


def test_store_is_made_beside_the_data_once(dataset: ImageFolderDataset) -> None:
    said: list[str] = []
    ensure_store(dataset, StoreOptions(k=9, instances=str(dataset.path.with_name("large"))), say=said.append)
    assert "--k=9 neighbours of 40 images are a large part of all" in said.pop(0)
    said.clear()
    store = ensure_store(dataset, StoreOptions(k=5), say=said.append)
    assert store.folder == dataset.path.with_name("patterns.instances")
    assert {"manifest.json", "features.npy", "neighbours.npy", "radii.npy"} <= {f.name for f in store.folder.iterdir()}
    assert len(said) == 3  # extractor, features, neighbours
    features = np.load(store.folder / "features.npy")
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    again = ensure_store(dataset, StoreOptions(k=3), say=said.append)
    assert len(said) == 3  # more neighbours than needed: nothing to do
    assert again.k == 5


def test_store_neighbours_are_of_the_same_class(dataset: ImageFolderDataset) -> None:
    store = ensure_store(dataset, StoreOptions(k=5))
    assert dataset.class_ids is not None
    assert (dataset.class_ids[store.neighbours] == dataset.class_ids[:, None]).mean() > 0.95
    assert (store.neighbours != np.arange(40)[:, None]).all()
    assert (np.diff(store.radii, axis=1) >= 0).all()


def test_store_gets_more_neighbours_without_new_features(dataset: ImageFolderDataset) -> None:
    features = np.array(ensure_store(dataset, StoreOptions(k=3)).features)
    said: list[str] = []
    more = ensure_store(dataset, StoreOptions(k=8), say=said.append)
    assert more.k == 8
    assert np.array_equal(more.features, features)
    assert not any("features of" in line for line in said)


def test_store_accepts_a_shuffled_zip_and_refuses_changed_ones(tmp_path: Path) -> None:
    images, labels = pattern_images(20)
    names = [f"{i:02d}.png" for i in range(20)]
    path = tmp_path / "data.zip"
    write_zip(path, images, labels, names)
    folder = ensure_store(ImageFolderDataset(path), StoreOptions(k=3)).folder

    write_zip(path, images[::-1], labels[::-1], names[::-1])
    open_store(folder, ImageFolderDataset(path))

    changed = [image.copy() for image in images]
    changed[7][0, 0] ^= 1
    write_zip(path, changed, labels, names)
    with pytest.raises(UserError, match=r"content of '07\.png'.*differs.*delete"):
        ensure_store(ImageFolderDataset(path), StoreOptions(k=3))

    write_zip(path, images, labels, [*names[:4], "0x.png", *names[5:]])
    with pytest.raises(UserError, match=r"image 4 of .* is '05\.png', the store has '04\.png'"):
        ensure_store(ImageFolderDataset(path), StoreOptions(k=3))

    write_zip(path, images[:19], labels[:19], names[:19])
    with pytest.raises(UserError, match=r"has '19\.png', which .* lacks"):
        ensure_store(ImageFolderDataset(path), StoreOptions(k=3))


def test_store_refuses_k_extractor_format_and_damage(dataset: ImageFolderDataset) -> None:
    with pytest.raises(UserError, match=r"--k=40, but 40 images of .* are used; expected 1 <= k <= 39"):
        ensure_store(dataset, StoreOptions(k=40))
    folder = ensure_store(dataset, StoreOptions(k=3)).folder
    with pytest.raises(UserError, match=r"--extractor=resnet50, but the features in .* were made with pca"):
        ensure_store(dataset, StoreOptions(k=3, extractor="resnet50"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        ensure_store(dataset, StoreOptions(k=3))
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        ensure_store(dataset, StoreOptions(k=3))
    (folder / "manifest.json").write_text("[1]")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        ensure_store(dataset, StoreOptions(k=3))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    neighbours = np.load(folder / "neighbours.npy")
    for wrong in (neighbours + 9999, neighbours.astype(np.float32), np.arange(40)[:, None].repeat(3, axis=1)):
        np.save(folder / "neighbours.npy", wrong)
        with pytest.raises(UserError, match=r"neighbours\.npy"):
            ensure_store(dataset, StoreOptions(k=3))
    np.save(folder / "neighbours.npy", neighbours)
    (folder / "extractor.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"extractor\.safetensors is damaged"):
        ensure_store(dataset, StoreOptions(k=3))
    (folder / "extractor.safetensors").unlink()
    (folder / "features.npy").write_bytes((folder / "features.npy").read_bytes()[:200])
    with pytest.raises(UserError, match=r"features\.npy is damaged"):
        ensure_store(dataset, StoreOptions(k=3))


def test_store_goes_to_the_cache_folder_where_the_data_cannot_be_written(
    dataset: ImageFolderDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who can write anywhere
    store = ensure_store(dataset, StoreOptions(k=3))
    assert store.folder.is_relative_to(tmp_path / "cache")
    assert ensure_store(dataset, StoreOptions(k=3), say=lambda line: pytest.fail(line)).folder == store.folder


def test_store_of_a_subset_knows_the_subset_only(patterns_zip: Path) -> None:
    whole = ensure_store(ImageFolderDataset(patterns_zip), StoreOptions(k=3))
    part = ImageFolderDataset(patterns_zip, max_images=10, subset_seed=1)
    store = ensure_store(part, StoreOptions(k=3))
    assert store.folder != whole.folder
    assert store.neighbours.shape == (10, 3)
    source = InstanceDataset(part, store, 3)
    sample = source[Draws(np.arange(10), hashed(0, np.arange(10)))]
    for image, j in zip(sample.image, sample.index.tolist(), strict=True):
        assert np.array_equal(image.numpy(), part.image(j))


def test_store_is_not_there_after_a_kill_in_the_middle(patterns_zip: Path) -> None:
    """Kill -9 while neighbours are computed: no half-written store keeps the next start from making a whole one."""
    code = (
        "import os, sys, stylegan2_icgan.making as m\n"
        "from training.dataset import ImageFolderDataset\n"
        "import stylegan2_icgan.workshop as w\n"
        "w.make_search = lambda *args, **more: os.kill(os.getpid(), 9)\n"
        "m.ensure_store(ImageFolderDataset(sys.argv[1]), m.StoreOptions(k=3))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(patterns_zip)], cwd=Path(__file__).parents[1])
    assert killed.returncode == -9
    dataset = ImageFolderDataset(patterns_zip)
    assert not dataset.path.with_name("patterns.instances").exists()
    assert ensure_store(dataset, StoreOptions(k=3)).features.shape[0] == 40


def test_real_pair_is_a_neighbours_image_with_the_centres_feature(dataset: ImageFolderDataset) -> None:
    store = ensure_store(dataset, StoreOptions(k=6))
    source = InstanceDataset(dataset, store, k=4)
    sample = source[repeat(11, 400)]
    assert torch.equal(sample.h, torch.from_numpy(np.array(store.features[11])).expand(400, -1))
    neighbours = store.neighbours[11, :4]
    assert set(sample.index.tolist()) == set(neighbours.tolist())  # all k of them, no other, not itself
    counts = [sample.index.tolist().count(j) for j in neighbours]
    assert min(counts) > 60  # uniform: 100 each, deviation 8.7
    for image, c, j in zip(sample.image, sample.c, sample.index.tolist(), strict=True):
        assert np.array_equal(image.numpy(), dataset.image(j))
        assert c.argmax() == dataset.class_ids[j]  # type: ignore[index]


def test_fake_condition_joins_a_feature_with_a_label_of_its_own_neighbourhood(tmp_path: Path) -> None:
    images, _ = pattern_images(40)
    dataset = ImageFolderDataset(
        write_zip(tmp_path / "own.zip", images, range(40)), use_labels=True
    )  # a class an image
    store = ensure_store(dataset, StoreOptions(k=3))
    source = InstanceDataset(dataset, store, k=3)
    draws = fake_draws(40, seed=0, stream=0, start=0, count=500)
    condition = source.conditions(draws)
    for i, c, h in zip(draws.index, condition.c, condition.h, strict=True):
        assert torch.equal(h, torch.from_numpy(np.array(store.features[i])))
        assert int(c.argmax()) in store.neighbours[i]


def test_mirrored_instances_use_the_flipped_feature_half_the_time(dataset: ImageFolderDataset) -> None:
    store = ensure_store(dataset, StoreOptions(k=3))
    plain, mirrored = (
        InstanceDataset(dataset, store, 3, mirror_instances=flag)[repeat(2, 400)] for flag in (False, True)
    )
    own, flipped = (torch.from_numpy(np.array(rows[2])) for rows in (store.features, store.features_mirror))
    assert not torch.allclose(own, flipped)
    assert (plain.h == own).all()
    is_flipped = (mirrored.h == flipped).all(dim=1)
    assert ((mirrored.h == own).all(dim=1) ^ is_flipped).all()
    assert 150 < int(is_flipped.sum()) < 250
    assert torch.equal(plain.index, mirrored.index)  # the neighbour drawn does not depend on the option
    for j in store.neighbours[2]:  # ... nor the flip on the neighbour
        assert 0.3 < is_flipped[mirrored.index == int(j)].float().mean() < 0.7
    flipped_image = torch.from_numpy(dataset.image(2)).flip(2)[None]
    assert torch.allclose(store.extractor()(flipped_image)[0], flipped, atol=1e-5)


def test_draws_do_not_depend_on_processes_or_batches(dataset: ImageFolderDataset) -> None:
    source = InstanceDataset(dataset, ensure_store(dataset, StoreOptions(k=5)), k=5, mirror_instances=True)
    whole = source[real_draws(40, seed=1, start=0, count=24)]
    parts = [source[real_draws(40, seed=1, start=start, count=8)] for start in (0, 8, 16)]
    copied = pickle.loads(pickle.dumps(source))[real_draws(40, seed=1, start=0, count=24)]
    for name, field in whole._asdict().items():
        assert torch.equal(field, torch.cat([getattr(part, name) for part in parts]))
        assert torch.equal(field, getattr(copied, name))


def test_showcase_rows_begin_with_the_instance(dataset: ImageFolderDataset) -> None:
    store = ensure_store(dataset, StoreOptions(k=5))
    condition, images = InstanceDataset(dataset, store, k=5).showcase(6, 4)
    assert images.shape == (6, 4, 1, 8, 8)
    features = store.extractor()(images[:, 0])
    assert torch.allclose(features, condition.h, atol=1e-5)
    nearest = np.argmax(condition.h.numpy() @ store.features.T, axis=1)
    assert np.array_equal(condition.c.argmax(1), dataset.class_ids[nearest])  # type: ignore[index]


def test_exemplars_can_be_used_without_the_data_set(dataset: ImageFolderDataset) -> None:
    store = ensure_store(dataset, StoreOptions(k=5))
    exemplars = InstanceDataset(dataset, store, k=5).exemplars(12)
    assert len(exemplars) == len(exemplars.names) == len(exemplars.images) == 12
    assert len(set(exemplars.names)) == 12
    for name, image, c, h in zip(
        exemplars.names, exemplars.images, exemplars.condition.c, exemplars.condition.h, strict=True
    ):
        i = dataset.names.index(name)
        assert np.array_equal(image.numpy(), dataset.image(i))
        assert np.array_equal(h.numpy(), store.features[i])
        assert c.argmax() == dataset.class_ids[i]  # type: ignore[index]
