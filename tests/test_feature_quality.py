import json

import numpy as np
import pytest

from stylegan2_icgan.feature_quality import duplicates, hubness, label_agreement, quality, quality_lines
from stylegan2_icgan.neighbours import nearest_neighbours


def test_label_agreement_counts_neighbours_of_the_own_class():
    neighbours = np.array([[1, 2], [0, 2], [3, 0], [2, 1]])
    agreement = label_agreement(neighbours, np.array([0, 0, 1, 1]))
    assert agreement == {"1": 1.0, "2": 0.5, "chance": pytest.approx(4 / 12)}


def test_hubness_names_the_row_that_is_near_everything():
    star = np.array([[1], [0], [0], [0], [0]])  # counts 4, 1, 0, 0, 0
    report = hubness(star)
    deviation = np.array([4, 1, 0, 0, 0]) - 1.0
    assert report["skewness"] == pytest.approx((deviation**3).mean() / (deviation**2).mean() ** 1.5)
    assert (report["largest"], report["largest_row"], report["unused"]) == (4, 0, 0.6)
    ring = np.array([[1], [2], [0]])
    assert hubness(ring) == {"skewness": 0.0, "largest": 1, "largest_row": 0, "unused": 0.0}


def test_duplicates_are_counted_once_and_named():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 8)).astype(np.float32)
    features[20], features[21] = features[3], features[3] + 1e-3
    checksums = np.arange(30)
    checksums[20] = checksums[3]
    neighbours, radii = nearest_neighbours(features, 4)
    report = duplicates(neighbours, radii, checksums)
    assert report["near_pairs"] == 3
    assert report["nearest"][0] == [3, 20]
    assert (report["equal_files"], report["equal"]) == (1, [[3, 20]])
    assert duplicates(neighbours, radii, None)["equal_files"] is None


def test_cosines_and_effective_dimension_are_those_of_all_pairs():
    rng = np.random.default_rng(1)
    features = rng.standard_normal((200, 32)) * (np.arange(32) < 5) + 0.3
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    report = quality(features, *nearest_neighbours(features, 5))
    similarity = (features @ features.T)[np.triu_indices(200, 1)]
    assert report["cosine"]["mean"] == pytest.approx(similarity.mean(), abs=1e-6)
    assert report["cosine"]["25"] == pytest.approx(np.percentile(similarity, 25), abs=1e-5)
    spectrum = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64)))
    assert report["effective_dim"] == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum(), rel=1e-6)
    few = quality(features[:20].astype(np.float16), *nearest_neighbours(features[:20], 5))
    spectrum = np.linalg.eigvalsh(np.cov(features[:20].T.astype(np.float64)))
    assert few["effective_dim"] == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum(), rel=1e-2)


def test_report_is_json_and_warns_of_collapse_and_hubs():
    rng = np.random.default_rng(2)
    centre = rng.standard_normal(300)
    # Rows of many lengths around one point: those near it are near to all.
    features = (centre + rng.standard_normal((400, 300)) * 0.02 * (1 + rng.random((400, 1)) * 3)).astype(np.float32)
    report = quality(features, *nearest_neighbours(features, 5), class_ids=rng.integers(0, 2, 400))
    assert json.loads(json.dumps(report)) == report
    text = "\n".join(quality_lines(report, [f"{i}.png" for i in range(400)]))
    assert "all features are nearly the same" in text
    assert "neighbours of very many" in text
    assert f"most often a neighbour: {report['hubness']['largest_row']}.png" in text
    assert f"by chance {report['label_agreement']['chance']:.3f}" in text
    apart = rng.standard_normal((100, 4)).astype(np.float32)
    fine = quality(apart, *nearest_neighbours(apart, 3), checksums=np.arange(100))
    assert "warning" not in "\n".join(quality_lines(fine))
