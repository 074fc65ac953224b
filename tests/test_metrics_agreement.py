"""Our arithmetic against that of others, on equal features: each package where it is installed, and loops everywhere.

The features are those of real images: digits of two groups of writers, as a fixed projection sees them.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from metrics import inception
from metrics.detectors import RandomProjection, make_detector
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.inception_score import InceptionScore
from metrics.kernel_distance import kernel_distance
from metrics.precision_recall import density_coverage, precision_recall
from torch_utils.files import sha256
from training.dataset import ImageFolderDataset

DIGITS = Path(__file__).parents[1] / "datasets" / "digits.zip"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def features() -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [700, 64] and [600, 64]."""
    images = ImageFolderDataset(DIGITS).images(np.arange(1300))
    real, fake = RandomProjection().features(images).split([700, 600])
    return real, fake


@pytest.fixture(scope="module")
def logits(features: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return features[0][:, :10] * 4


def frechet(features: tuple[torch.Tensor, torch.Tensor]) -> float:
    return frechet_distance(*(FeatureStats().append(rows) for rows in features))


def score(logits: torch.Tensor) -> tuple[float, float]:
    stream = InceptionScore(len(logits))
    stream.append(logits)
    return stream.result()


# The definitions, slowly.


def test_frechet_is_the_definition(features):
    """arXiv:1706.08500, equation 6, with SciPy's root of the product."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(axis=0), np.cov(x.T)) for x in (f.double().numpy() for f in features))
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))
    assert expected > 0.01
    assert frechet(features) == pytest.approx(expected, rel=1e-8)


def test_score_is_the_definition(logits):
    """arXiv:1606.03498, section 4: exp of the mean over images of KL(p(y | x) || p(y)), in ten parts."""
    scores = []
    for part in logits.double().numpy().reshape(10, 70, 10):
        p = np.exp(part) / np.exp(part).sum(axis=1, keepdims=True)
        marginal = p.mean(axis=0)
        divergences = [sum(p_y * (math.log(p_y) - math.log(q_y)) for p_y, q_y in zip(row, marginal)) for row in p]  # noqa: B905
        scores.append(math.exp(np.mean(divergences)))
    assert score(logits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)


def test_neighbour_metrics_are_their_definitions(features):
    """arXiv:1904.06991, equations 1 and 2; arXiv:2002.09797, section 3: with all distances, by their differences."""
    real, fake = (rows.double().numpy() for rows in features)

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(np.stack([((row - y) ** 2).sum(axis=1) for row in x]))

    apart, k = distances(fake, real), 5
    of_real, of_fake = (np.sort(distances(x, x), axis=1)[:, k] for x in (real, fake))  # place 0 is the row itself
    expected = (apart <= of_real).any(axis=1).mean(), (apart <= of_fake[:, None]).any(axis=0).mean()
    assert precision_recall(*features, k) == expected
    assert 0.2 < expected[0] < 0.99
    assert 0.2 < expected[1] < 0.99
    held = apart < of_real
    assert density_coverage(*features, k) == (held.sum() / (k * len(fake)), held.any(axis=0).mean())


# The packages.


def test_frechet_agrees_with_torch_fidelity(features):
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    stats = [fidelity.fid_features_to_statistics(rows.double()) for rows in features]
    (expected,) = fidelity.fid_statistics_to_metric(*stats, verbose=False).values()
    assert frechet(features) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_agrees_with_torch_fidelity(features):
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    real, fake = features[0][:600].double(), features[1].double()
    found = fidelity.kid_features_to_metric(real, fake, kid_subsets=1, kid_subset_size=600, verbose=False)
    expected = found["kernel_inception_distance_mean"]
    assert expected > 1e-5
    assert kernel_distance(real, fake, num_subsets=1, subset_rows=600)[0] == pytest.approx(expected, rel=1e-6)


def test_score_agrees_with_torch_fidelity(logits):
    fidelity = pytest.importorskip("torch_fidelity.metric_isc")
    expected = fidelity.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert score(logits) == pytest.approx(tuple(expected.values()), rel=1e-6)


def test_precision_and_recall_agree_with_torch_fidelity(features):
    fidelity = pytest.importorskip("torch_fidelity.metric_prc")
    real, fake = features
    found = fidelity.prc_features_to_metric(fake.double(), real.double(), prc_neighborhood=3, verbose=False)
    assert precision_recall(real, fake) == pytest.approx((found["precision"], found["recall"]), rel=1e-6)


def test_neighbour_metrics_are_exactly_those_of_prdc(features):
    prdc = pytest.importorskip("prdc")
    real, fake = (rows.double().numpy() for rows in features)
    for k in (3, 5):
        expected = prdc.compute_prdc(real, fake, nearest_k=k)
        assert precision_recall(*features, k) == (expected["precision"], expected["recall"])
        assert density_coverage(*features, k) == (expected["density"], expected["coverage"])


def test_metrics_agree_with_torchmetrics(features, logits):
    image = pytest.importorskip("torchmetrics.image")
    given = torch.nn.Identity()  # as feature extractor: "images" are features
    given.num_features = 64
    real, fake = (rows.double() for rows in features)

    def value(metric):
        metric.set_dtype(torch.float64)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        return metric.compute()

    distance = image.FrechetInceptionDistance(feature=given, input_img_size=(64,))
    assert frechet(features) == pytest.approx(float(value(distance)), rel=1e-6)

    real = real[: len(fake)]  # of sets of one size a subset may be the whole, which is not random
    mean, _ = value(image.KernelInceptionDistance(feature=given, subsets=1, subset_size=len(real)))
    assert kernel_distance(real, fake, 1, len(real))[0] == pytest.approx(float(mean), rel=1e-6)

    measured = image.InceptionScore(feature=given, splits=1)
    measured.update(logits.double())
    stream = InceptionScore(len(logits), splits=1)
    stream.append(logits)
    assert stream.result()[0] == pytest.approx(float(measured.compute()[0]), rel=1e-6)


@pytest.mark.slow
def test_inception_sees_what_torch_fidelitys_own_network_sees(tmp_path, monkeypatch):
    """The module itself, with weights at random: its own resize is our `tf`, and at 299 pixels there is none."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # made without any weights, to have some to give
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(network, "load_state_dict", lambda self, _: None)
        bare = network("inception", ["2048", "logits_unbiased"])
    for layer in bare.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):  # else activations die out on the way
            torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(bare.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=sha256(tmp_path / "weights.pth")))
    digit = ImageFolderDataset(DIGITS).images(np.arange(1)).expand(-1, 3, -1, -1).contiguous()
    large = torch.randint(0, 256, (1, 3, 299, 299), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    (of_digit, logits), (of_large, _) = bare(digit), bare(large)
    scale = of_digit.abs().mean()
    assert scale > 1e-3
    assert (of_digit - of_large).abs().max() > 0.01 * scale
    loaded = make_detector("inception", tmp_path / "weights.pth", "tf", CPU)
    clean = inception.Inception(loaded.network, "clean", CPU, "")
    for found, expected in (
        (loaded.features(digit), of_digit),
        (loaded.logits(digit), logits),
        (clean.features(large), of_large),
    ):
        torch.testing.assert_close(found / scale, expected / scale, rtol=1e-4, atol=1e-4)
    assert (clean.features(digit) - of_digit).abs().max() > 0.01 * scale
