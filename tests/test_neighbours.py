import numpy as np
import pytest

from stylegan2_icgan import neighbours
from stylegan2_icgan.neighbours import nearest_neighbours
from stylegan2_icgan.selection import kmeans_exemplars


def unit_vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_neighbours_agree_with_sorting_all_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    features = unit_vectors(300, 16)
    similarity = features.astype(np.float64) @ features.T.astype(np.float64)
    np.fill_diagonal(similarity, -np.inf)
    expected = np.argsort(-similarity, axis=1)[:, :7]
    distances = np.sqrt(2 - 2 * np.take_along_axis(similarity, expected, axis=1))
    monkeypatch.setattr(neighbours, "QUERY_BLOCK", 64)
    for block in (16384, 50):  # one block of keys, and several
        monkeypatch.setattr(neighbours, "KEY_BLOCK", block)
        ids, radii = nearest_neighbours(features, 7)
        assert np.array_equal(ids, expected)
        np.testing.assert_allclose(radii, distances, atol=1e-6)


def test_neighbours_of_identical_rows_are_k_distinct_others() -> None:
    """101 equal images among 500: "drop the first column" would lose neighbours or keep the row itself."""
    features = unit_vectors(500, 8)
    features[100:201] = features[100]
    ids, radii = nearest_neighbours(features, 50)
    assert (ids != np.arange(500)[:, None]).all()
    assert all(len(set(row)) == 50 for row in ids)
    assert (radii[100:201] == 0).all()


def test_neighbours_rank_by_angle_not_by_rank_of_self() -> None:
    angles = np.radians([0, 10, 25, 90])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ids, radii = nearest_neighbours(features, 2)
    assert ids.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    np.testing.assert_allclose(radii[0], 2 * np.sin(np.radians([5, 12.5])), rtol=1e-5)


def test_neighbours_tell_near_duplicates_apart() -> None:
    """Re-encoded copies of one image: distances of 1e-4, whose cosines are all 1 in float32."""
    rng = np.random.default_rng(0)
    features = unit_vectors(1, 32) + 1e-4 * rng.standard_normal((200, 32)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    exact = features.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    distances = np.linalg.norm(exact[:, None] - exact[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    ids, radii = nearest_neighbours(features, 5)
    expected = np.sort(distances, axis=1)[:, :5]
    np.testing.assert_allclose(np.take_along_axis(distances, ids, axis=1), expected, rtol=0.02)
    assert (np.diff(radii, axis=1) > -1e-6).all()


@pytest.mark.parametrize("k", [0, 5, 6])
def test_neighbours_refuse_k(k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k < 5"):
        nearest_neighbours(unit_vectors(5, 3), k)


def test_exemplars_cover_every_cluster_once_each() -> None:
    rng = np.random.default_rng(0)
    centres = unit_vectors(12, 16, seed=1)
    features = centres.repeat(30, axis=0) + 0.02 * rng.standard_normal((360, 16)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    chosen = kmeans_exemplars(features, 60)
    assert len(set(chosen.tolist())) == 60
    assert set(chosen // 30) == set(range(12))
    assert np.array_equal(chosen, kmeans_exemplars(features, 60))


def test_exemplars_of_identical_rows_are_still_distinct() -> None:
    features = np.ones((50, 4), np.float32) / 2
    assert len(set(kmeans_exemplars(features, 20).tolist())) == 20
    assert kmeans_exemplars(features, 100).tolist() == list(range(50))
