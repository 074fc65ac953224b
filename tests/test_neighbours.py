import json
import multiprocessing
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan2_icgan import neighbours
from stylegan2_icgan.neighbours import (
    Speed,
    choose_method,
    estimate_sec,
    make_search,
    measure_recall,
    nearest_neighbours,
)
from stylegan2_icgan.search import candidates, faiss_process, ranking
from stylegan2_icgan.search import exact as exact_search
from stylegan2_icgan.search import ivf as ivf_search
from stylegan2_icgan.search import rerank as rerank_search
from stylegan2_icgan.search.copies import first_equal
from stylegan2_icgan.search.faiss_search import FaissSearch
from stylegan2_icgan.search.ivf import IvfSearch
from stylegan2_icgan.search.shortlist import Shortlist
from stylegan2_icgan.search.unit_rows import UnitRows
from torch_utils.command_line import UserError

CPU = torch.device("cpu")
APPROXIMATE = ("rerank", "ivf")


def unit_vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clustered(count: int, width: int, per_cluster: int = 40, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters of low dimension, sorted by cluster as folders of classes are."""
    rng = np.random.default_rng(seed)
    num = count // per_cluster
    latent = rng.standard_normal((num, 12)).repeat(per_cluster, axis=0) + 0.4 * rng.standard_normal((count, 12))
    x = latent @ rng.standard_normal((12, width)) + 0.05 * rng.standard_normal((count, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def in_float64(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances by differences of all pairs, equal ones in order of their ids."""
    x = features.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distances = np.stack([np.linalg.norm(x - row, axis=1) for row in x])
    np.fill_diagonal(distances, np.inf)
    ids = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(distances, ids, axis=1)


@pytest.fixture
def small_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rerank and ivf work on what a test can afford."""
    monkeypatch.setattr(rerank_search, "DIM", 16)
    monkeypatch.setattr(rerank_search, "QUERY_BLOCK", 64)
    monkeypatch.setattr(rerank_search, "EXTRA", (50, 200))
    monkeypatch.setattr(ivf_search, "DIM", 16)
    monkeypatch.setattr(ivf_search, "MIN_ROWS", 500)


SPEED = Speed(float32=8e10, bfloat16=1e10)


# -- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("make", [unit_vectors, clustered])
def test_exact_is_the_order_of_all_distances_in_float64(make, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    features = make(600, 24).astype(dtype)
    expected, distances = in_float64(features, 7)
    for query_block, key_block in ((2048, 4096), (64, 50), (100, 256)):
        monkeypatch.setattr(exact_search, "QUERY_BLOCK", query_block)
        monkeypatch.setattr(exact_search, "KEY_BLOCK", key_block)
        ids, radii = nearest_neighbours(features, 7)
        assert np.array_equal(ids, expected)
        np.testing.assert_allclose(radii, distances, rtol=1e-6)


def test_exact_finds_all_but_one_of_few_rows() -> None:
    features = unit_vectors(6, 3)
    assert np.array_equal(nearest_neighbours(features, 5)[0], in_float64(features, 5)[0])


def test_lengths_of_rows_do_not_matter() -> None:
    features = unit_vectors(200, 8)
    lengths = np.random.default_rng(1).uniform(0.1, 10, (200, 1)).astype(np.float32)
    assert np.array_equal(nearest_neighbours(features * lengths, 5)[0], in_float64(features, 5)[0])


@pytest.mark.parametrize("method", ["exact", "ivf"])
@pytest.mark.parametrize("scales", [[1e-42], [1e-22], [1e-20], [1e20], [1e-38, 1e-22, 1.0, 1e20, 1e38]])
def test_rows_may_be_very_short_and_very_long(method: str, scales: list[float], small_indices: None) -> None:
    features = clustered(1000, 64)
    features[:300] = features[0] + 1e-5 * unit_vectors(300, 64)  # too near for float32, so ranked in two steps
    features *= np.random.default_rng(1).choice(np.float32(scales), (1000, 1))
    search = make_search(features, 5, method, speed=SPEED, target_recall=0.97)
    assert search.description["method"] == method
    ids, distances = search.search(np.arange(1000))
    expected, expected_distances = in_float64(features, 5)
    right = (ids == expected).all(axis=1)
    assert right.mean() >= (1.0 if method == "exact" else 0.97)
    np.testing.assert_allclose(distances[right], expected_distances[right], rtol=1e-6)


def test_faiss_rows_may_be_very_short_and_very_long() -> None:
    scales = np.float32([1e-38, 1e-22, 1.0, 1e20, 1e38])[:, None]
    unit = unit_vectors(1, 64)
    np.testing.assert_allclose(faiss_process._unit(scales * unit), unit.repeat(5, axis=0), atol=1e-6)


@pytest.mark.parametrize("method", ["exact", "ivf"])
def test_more_equal_rows_than_float32_can_sort_need_no_float64_scan(
    method: str, monkeypatch: pytest.MonkeyPatch, small_indices: None
) -> None:
    monkeypatch.setattr(exact_search.ExactSearch, "_search_double", None)
    features = clustered(1600, 64)
    features[np.random.default_rng(0).permutation(1600)[:1200]] = features[0]
    features[1::180] = features[1]
    search = make_search(features, 5, "exact")
    if method == "ivf":
        search = IvfSearch(UnitRows(features), 5, ivf_search.nearest_cells(UnitRows(features), 0), 16)
    expected, distances = in_float64(features, 5)
    for rows in (np.arange(1600), np.arange(1599, 0, -7)):
        ids, radii = search.search(rows)
        np.testing.assert_allclose(radii[:, 0], distances[rows, 0], rtol=1e-6)
        right = (ids == expected[rows]).all(axis=1)
        assert right.mean() >= (1.0 if method == "exact" else 0.95)
        copies = (distances[rows] == 0).all(axis=1)
        assert copies.sum() > 100
        assert right[copies].all()


def test_equal_rows_are_told_from_rows_of_equal_length() -> None:
    features = np.eye(8, dtype=np.float32)[[0, 1, 2, 1, 0, 3, 1]]
    assert first_equal(features, np.ones(7)).tolist() == [0, 1, 2, 1, 0, 5, 1]
    assert first_equal(features[:3], np.array([1.0, 2.0, 3.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("apart", [0.0, 1e-6])
def test_memory_of_an_inverted_file_does_not_grow_with_the_square_of_duplicates(
    apart: float, monkeypatch: pytest.MonkeyPatch, small_indices: None
) -> None:
    """1500 near ones in one cell would be 2.25 million candidates of 24 bytes."""
    monkeypatch.setattr(candidates, "ROOM", 1 << 16)
    monkeypatch.setattr(ivf_search, "DOUBTFUL_ELEMENTS", 1 << 16)
    monkeypatch.setattr(ivf_search, "QUERY_BLOCK", 64)
    features = clustered(2400, 32)
    features[:1500] = features[0] + apart * unit_vectors(1500, 32, seed=1)
    unit = UnitRows(features)
    cells = np.repeat([0, 1, 2], [1500, 500, 400])
    search = IvfSearch(unit, 5, np.stack([cells, (cells + 1) % 3], axis=1), 2)
    tracemalloc.start()
    ids, _ = search.search(np.arange(1500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert np.array_equal(ids, in_float64(features, 5)[0][:1500])


def test_rows_alone_in_their_cells_are_searched_whole() -> None:
    features = unit_vectors(300, 8)
    search = IvfSearch(UnitRows(features), 2, np.arange(300)[:, None], 1)
    assert np.array_equal(search.search(np.array([3]))[0], in_float64(features, 2)[0][[3]])


def test_neighbours_of_identical_rows_are_k_distinct_others_in_order_of_their_ids() -> None:
    """101 equal images among 500: "drop the first column" would lose neighbours or keep the row itself."""
    features = unit_vectors(500, 8)
    features[100:201] = features[100]
    ids, radii = nearest_neighbours(features, 50)
    assert (ids != np.arange(500)[:, None]).all()
    assert all(len(set(row)) == 50 for row in ids)
    assert (radii[100:201] == 0).all()
    assert ids[100].tolist() == list(range(101, 151))
    assert ids[200].tolist() == list(range(100, 150))


def test_neighbours_tell_near_duplicates_apart() -> None:
    """Re-encoded copies of one image: 1e-5 apart, cosines all 1 in float32, and more of them than float32 can sort."""
    rng = np.random.default_rng(0)
    features = unit_vectors(1, 32) + 1e-5 * rng.standard_normal((1400, 32)).astype(np.float32)
    expected, distances = in_float64(features, 5)
    ids, radii = nearest_neighbours(features, 5)
    assert np.array_equal(ids, expected)
    np.testing.assert_allclose(radii, distances, rtol=1e-6)
    assert radii.max() < 1e-4


def test_near_duplicates_take_the_float64_path_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    features = unit_vectors(1600, 8)
    features[:1200] = features[0] + 1e-6 * unit_vectors(1200, 8, seed=1)
    search = make_search(features, 3, "exact")
    doubtful = []
    in_double = search._search_double  # type: ignore[attr-defined]
    monkeypatch.setattr(search, "_search_double", lambda rows: doubtful.append(rows) or in_double(rows))
    rows = np.arange(1190, 1210)
    ids, _ = search.search(rows)
    assert np.concatenate(doubtful).tolist() == list(range(1190, 1200))
    assert np.array_equal(ids, in_float64(features, 3)[0][rows])


def test_neighbours_rank_by_angle_not_by_rank_of_self() -> None:
    angles = np.radians([0, 10, 25, 90])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ids, radii = nearest_neighbours(features, 2)
    assert ids.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    np.testing.assert_allclose(radii[0], 2 * np.sin(np.radians([5, 12.5])), rtol=1e-5)


@pytest.mark.parametrize("k", [0, 5, 6])
def test_neighbours_refuse_k(k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k < 5"):
        nearest_neighbours(unit_vectors(5, 3), k)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_rows_without_direction_are_named(value: float) -> None:
    features = unit_vectors(10, 3)
    features[4] = value
    with pytest.raises(ValueError, match="row 4 of the features has no direction"):
        make_search(features, 2)


def test_progress_is_told() -> None:
    done: list[int] = []
    nearest_neighbours(unit_vectors(50, 3), 2, done.append)
    assert done[-1] == 50


# -- all methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("method", ["exact", *APPROXIMATE])
def test_a_row_has_the_same_neighbours_alone_as_among_others(method: str, dtype, small_indices: None) -> None:
    features = clustered(1200, 64).astype(dtype)
    features[::100] = features[0]
    search = make_search(features, 10, method, speed=SPEED)
    assert search.description["method"] == method
    order = search.query_order()
    assert np.array_equal(np.sort(order), np.arange(1200))
    ids, distances = search.search(order)
    assert (ids != order[:, None]).all()
    assert (np.sort(ids, axis=1)[:, 1:] != np.sort(ids, axis=1)[:, :-1]).all()
    assert (np.diff(distances, axis=1) >= 0).all()
    for i in range(0, 1200, 97):
        alone = search.search(order[i : i + 1])
        assert np.array_equal(alone[0][0], ids[i])
        assert np.array_equal(alone[1][0], distances[i])
    backwards = search.search(order[::-1].copy())
    assert np.array_equal(backwards[0], ids[::-1])
    assert np.array_equal(backwards[1], distances[::-1])


@pytest.mark.parametrize("method", APPROXIMATE)
def test_approximate_search_reaches_its_target_and_says_what_it_measured(method: str, small_indices: None) -> None:
    features = clustered(1000, 64)
    search = make_search(features, 10, method, speed=SPEED, target_recall=0.97)
    assert search.description["method"] == method
    assert search.description["recall"] >= 0.97
    expected, expected_distances = in_float64(features, 10)
    ids, distances = search.search(np.arange(1000))
    found = np.mean([len(set(a) & set(b)) for a, b in zip(ids, expected, strict=True)]) / 10
    assert found >= 0.97
    assert measure_recall(search, features, 10, sample=1000) == pytest.approx(found, abs=1e-3)
    right = ids == expected
    np.testing.assert_allclose(distances[right], expected_distances[right], rtol=1e-6)


@pytest.mark.parametrize("method", APPROXIMATE)
def test_rows_that_do_not_cluster_are_searched_whole_and_the_reason_given(method: str, small_indices: None) -> None:
    features = unit_vectors(1000, 64)
    search = make_search(features, 10, method, speed=SPEED)
    assert search.description["method"] == "exact"
    assert search.description["asked"] == method
    assert "recall of 0." in search.description["reason"]
    assert search.description["reason"].endswith("so exact")
    assert np.array_equal(search.search(np.arange(50))[0], in_float64(features, 10)[0][:50])


def test_inverted_file_gives_every_row_k_neighbours_though_cells_are_small(small_indices: None) -> None:
    features = clustered(1000, 32, per_cluster=10)
    search = make_search(features, 60, "ivf", speed=SPEED, target_recall=0.01)
    assert search.description["num_probes"] == 1
    ids, _ = search.search(np.arange(1000))
    assert all(len(set(row)) == 60 for row in ids)


def test_inverted_file_searches_few_rows(small_indices: None) -> None:
    search = make_search(clustered(4000, 32), 10, "ivf", speed=SPEED)
    assert search.description["method"] == "ivf"
    assert search.searched_share(np.arange(4000)) < 0.1  # type: ignore[attr-defined]


def test_bfloat16_scores_find_what_float32_ones_do(monkeypatch: pytest.MonkeyPatch, small_indices: None) -> None:
    features = clustered(1000, 64)
    search = make_search(features, 10, "rerank", speed=Speed(1e9, 1e10))
    assert search.description["scores"] == "bfloat16"
    assert search.description["recall"] >= 0.999
    assert np.mean(search.search(np.arange(1000))[0] == in_float64(features, 10)[0]) > 0.998


@pytest.mark.parametrize("method", APPROXIMATE)
def test_approximate_search_tells_near_duplicates_apart(method: str, small_indices: None) -> None:
    rng = np.random.default_rng(0)
    features = unit_vectors(25, 64).repeat(40, axis=0) + 1e-5 * rng.standard_normal((1000, 64)).astype(np.float32)
    search = make_search(features, 10, method, speed=SPEED, target_recall=0.995)
    assert search.description["method"] == method
    ids, distances = search.search(np.arange(1000))
    expected, expected_distances = in_float64(features, 10)
    right = (ids == expected).all(axis=1)
    assert right.mean() > 0.97
    np.testing.assert_allclose(distances[right], expected_distances[right], rtol=1e-6)


def test_thousands_of_duplicates_are_searched_exactly(small_indices: None) -> None:
    features = clustered(3000, 64)
    features[:2000] = features[0]
    search = make_search(features, 5, "rerank", speed=SPEED)
    assert search.description["method"] == "rerank"
    assert search.search(np.array([1500]))[0].tolist() == [[0, 1, 2, 3, 4]]


# -- indices on disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", *APPROXIMATE])
def test_saved_index_is_loaded_not_built(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_indices: None
) -> None:
    features = clustered(1000, 64)
    built = make_search(features, 10, method, folder=tmp_path, speed=SPEED)
    monkeypatch.setattr(neighbours, "_built", None)
    loaded = make_search(features, 10, method, folder=tmp_path, speed=SPEED)
    assert loaded.description == built.description
    for ours, theirs in zip(loaded.search(np.arange(1000)), built.search(np.arange(1000)), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("damage", ["features", "k", "target", "array", "missing", "manifest"])
def test_index_of_other_data_or_damaged_is_built_again(damage: str, tmp_path: Path, small_indices: None) -> None:
    features, k, target = clustered(1000, 64), 10, None
    make_search(features, k, "ivf", folder=tmp_path, speed=SPEED)
    before = json.loads((tmp_path / "index.json").read_text())
    if damage == "features":
        features = clustered(1000, 64, seed=1)
    elif damage == "k":
        k = 9
    elif damage == "target":
        target = 0.9
    elif damage == "array":
        content = bytearray((tmp_path / "probes.npy").read_bytes())
        content[-7] ^= 1
        (tmp_path / "probes.npy").write_bytes(content)
    elif damage == "missing":
        (tmp_path / "probes.npy").unlink()
    else:
        (tmp_path / "index.json").write_text(json.dumps(before)[:100])
    search = make_search(features, k, "ivf", folder=tmp_path, speed=SPEED, target_recall=target)
    assert measure_recall(search, features, k) > 0.88
    after = json.loads((tmp_path / "index.json").read_text())
    assert (after == before) == (damage in ("array", "missing", "manifest"))
    assert np.load(tmp_path / "probes.npy").max() == search.description["num_cells"] - 1


def test_mapped_features_are_searched_as_those_in_memory(tmp_path: Path, small_indices: None) -> None:
    features = clustered(1000, 64).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    for method in ("exact", *APPROXIMATE):
        ours, theirs = (make_search(x, 5, method, speed=SPEED).search(np.arange(300)) for x in (mapped, features))
        assert np.array_equal(ours[0], theirs[0])
        assert np.array_equal(ours[1], theirs[1])


# -- choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num", "h_dim", "speed", "processes", "expected"),
    [
        (500, 2048, 8e10, 1, "exact: 500 rows are few"),
        (50_000, 2048, 8e10, 1, "exact: all 50,000 rows of width 2048 take about"),
        (200_000, 2048, 8e10, 1, "rerank: exact takes about"),
        (200_000, 384, 8e10, 1, "exact: all 200,000 rows"),
        (1_280_000, 2048, 8e10, 1, "ivf: exact takes about 23h"),
        (1_280_000, 384, 8e10, 1, "ivf: exact takes about"),  # too short to be projected
        (200_000, 2048, 8e10, 8, "exact: all 200,000 rows"),
        (1_280_000, 2048, 8e10, 32, "rerank: exact takes about"),
        (1_280_000, 2048, 5e13, 1, "exact: all 1,280,000 rows"),
    ],
)
def test_auto_chooses_by_size_and_speed_and_says_why(num, h_dim, speed, processes, expected) -> None:
    device = torch.device("cuda") if speed > 1e12 else CPU
    choice = choose_method("auto", num, h_dim, 50, device, Speed(speed, speed / 8), processes, 64 << 30)
    assert choice[1].startswith(expected)
    assert choice[1].split(":")[0] == choice[0]
    assert choice == choose_method("auto", num, h_dim, 50, device, Speed(speed, speed / 8), processes, 64 << 30)


@pytest.mark.parametrize(
    ("h_dim", "bf16", "gib", "expected"),
    [
        (2048, False, 64, "ivf: exact takes"),
        (2048, False, 1, "exact: takes about 23h"),
        (2048, True, 1, "rerank: takes about"),  # needs no index
        (384, False, 1, "exact: takes about"),
    ],
)
def test_auto_takes_no_index_that_does_not_fit_the_memory(h_dim, bf16, gib, expected) -> None:
    speed = Speed(8e10, 1e11 if bf16 else 1e10)
    assert choose_method("auto", 1_280_000, h_dim, 50, CPU, speed, 1, gib << 30)[1].startswith(expected)


def test_estimate_grows_with_what_is_left_and_shrinks_with_processes() -> None:
    whole, half = (estimate_sec("exact", 100_000, 2048, 50, CPU, SPEED, n) for n in (None, 50_000))
    assert half == pytest.approx(whole / 2)
    assert estimate_sec("exact", 100_000, 2048, 50, CPU, SPEED, processes=4) == pytest.approx(whole / 4)
    assert 400 < whole < 800  # 4.1 PFLOP at 80 GFLOP/s take 512 s


def test_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'exakt'.*Did you mean 'exact'"):
        make_search(unit_vectors(10, 3), 2, "exakt")


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "rising", "falling"])
@pytest.mark.parametrize("keep", [3, 40])
def test_shortlist_keeps_all_that_may_be_among_the_best(order: str, keep: int) -> None:
    scores = np.random.default_rng(0).standard_normal((5, 900)).astype(np.float32)
    if order != "random":
        scores = np.sort(scores, axis=1)[:, :: 1 if order == "rising" else -1].copy()
    listed = Shortlist(5, keep, slack=0.1, limit=900)
    for start in range(0, 900, 200):
        listed.offer(torch.from_numpy(scores[:, start : start + 200].copy()), start)
    query, key, value = listed.finish()
    least = np.sort(scores, axis=1)[:, -keep] - np.float32(0.1)
    for row in range(5):
        assert np.array_equal(key[query == row], np.flatnonzero(scores[row] >= least[row]))
    assert np.array_equal(value, scores[query, key])


def test_products_on_a_device_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ranking.SLAB_ELEMENTS, "cpu", 20 * 16)
    unit = UnitRows(unit_vectors(100, 16) * 3)
    left, right = np.repeat(np.arange(10), 11), np.random.default_rng(0).integers(0, 100, 110)
    ours = ranking.products_on_device(unit, left, right, torch.float64)
    expected = (unit.features[left].astype(np.float64) * unit.features[right]).sum(axis=1)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert np.array_equal(ours[:7], ranking.products_on_device(unit, left[:7], right[:7], torch.float64))


# -- faiss ------------------------------------------------------------------------------------------------------------


def test_end_of_the_process_that_holds_faiss_is_told_in_one_line() -> None:
    search = FaissSearch.__new__(FaissSearch)
    search.unit, search.k = UnitRows(unit_vectors(10, 3)), 2
    search._connection, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(UserError, match="the process that runs faiss ended early"):
        search.search(np.arange(3))


@pytest.mark.slow
def test_faiss_finds_the_same_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "faiss_user.py").write_text(
        """
import sys
import numpy as np
from stylegan2_icgan.neighbours import make_search, nearest_neighbours
if __name__ == "__main__":
    features = np.random.default_rng(0).standard_normal((700, 24)).astype(np.float32)
    features[100:201] = features[100]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.save(sys.argv[1], features)
    mapped = np.load(sys.argv[1], mmap_mode="r")
    for given in (unit, mapped[100:], unit.astype(np.float16)):
        search = make_search(given, 50, "faiss")
        ids, distances = search.search(np.arange(len(given)))
        expected = nearest_neighbours(np.asarray(given), 50)
        assert np.array_equal(distances, expected[1]), np.abs(distances - expected[1]).max()
        assert all(len(set(row)) == 50 and i not in row for i, row in enumerate(ids.tolist()))
        search.close()
    print("faiss" in sys.modules)
"""
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "faiss_user.py"), str(tmp_path / "features.npy")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
