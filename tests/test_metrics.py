"""Metrics against closed forms, hand-made points and brute force."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import feature_stats
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance, sqrt_trace
from metrics.precision_recall import density_coverage, precision_recall


def features(num, width, seed=0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(width, seed, rank=None):
    root = features(rank or width, width, seed)
    return root.T @ root / len(root)


def gaussian(mean, cov):
    return FeatureStats.from_moments(1000, mean, cov)


# Feature statistics.


def test_stats_equal_numpy():
    x = features(300, 7) * 3 + 5
    stats = FeatureStats().append(x)
    assert stats.num == 300
    np.testing.assert_allclose(stats.mean, x.numpy().mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(stats.cov, np.cov(x.numpy(), rowvar=False), rtol=1e-12, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), max_size=12), look=st.booleans())
def test_stats_do_not_depend_on_the_chunks(sizes, look):
    x = features(200, 5)
    block_rows, feature_stats.BLOCK_ROWS = feature_stats.BLOCK_ROWS, 32
    try:
        whole, pieces = FeatureStats().append(x), FeatureStats()
        start = 0
        for size in [*sizes, len(x)]:
            pieces.append(x[start : start + size])
            start += size
            if look and pieces.num > 1:
                _ = pieces.cov  # to look on the way changes nothing
    finally:
        feature_stats.BLOCK_ROWS = block_rows
    assert pieces.num == whole.num
    assert torch.equal(pieces.mean, whole.mean)
    assert torch.equal(pieces.cov, whole.cov)


def test_stats_do_not_depend_on_the_order():
    x = features(5000, 6) + 3
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    a, b = FeatureStats().append(x), FeatureStats().append(shuffled)
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(a.cov, b.cov, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("cut", [0, 1, 1000, 2500, 4999, 5000])
def test_merged_stats_equal_those_of_all_rows(cut):
    x = features(5000, 4) * 2 - 7
    a, b, whole = (FeatureStats().append(rows) for rows in (x[:cut], x[cut:], x))
    merged = a + b
    assert (a.num, b.num, merged.num) == (cut, 5000 - cut, 5000)
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(merged.cov, whole.cov, rtol=1e-11, atol=1e-13)
    a.append(x[:10])
    assert merged.num == 5000  # the sum is a value of its own


def test_stats_keep_the_covariance_of_features_far_from_zero():
    x = features(3000, 3)
    near, far = FeatureStats().append(x), FeatureStats().append(x + 1e7)
    torch.testing.assert_close(far.cov, near.cov, rtol=1e-7, atol=1e-7)  # sums of raw squares are off by 0.01 here


def test_stats_copy_what_they_are_given():
    x = features(10, 3)
    stats = FeatureStats().append(x)
    mean = stats.mean
    x.zero_()
    assert torch.equal(stats.mean, mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
def test_stats_sum_in_float64_whatever_comes(dtype):
    x = torch.randint(0, 200, (4096, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    stats = FeatureStats().append(x)
    assert stats.mean.dtype == stats.cov.dtype == torch.float64
    torch.testing.assert_close(stats.mean, x.double().mean(dim=0), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "NaN or infinity in 1 of 2 rows, first in row 0"),
        (torch.tensor([[1.0, 0.0], [float("inf"), 1.0]]), "first in row 1"),
        (torch.zeros(2, 3), "3 wide after features 2 wide"),
        (torch.zeros(2), r"shape \[2\]; expected \[N, D\]"),
    ],
)
def test_stats_refuse(wrong, message):
    stats = FeatureStats().append(torch.ones(5, 2))
    with pytest.raises(ValueError, match=message):
        stats.append(wrong)
    assert stats.num == 5


def test_stats_say_how_many_rows_they_need():
    with pytest.raises(ValueError, match="at least 1 rows of features, got 0"):
        _ = FeatureStats().mean
    with pytest.raises(ValueError, match="at least 2 rows of features, got 1"):
        _ = FeatureStats().append(torch.ones(1, 2)).cov
    with pytest.raises(ValueError, match="3 wide after features 2 wide"):
        _ = FeatureStats().append(torch.ones(1, 2)) + FeatureStats().append(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"mean \[2\], cov \[3, 3\]"):
        FeatureStats.from_moments(10, torch.zeros(2), torch.eye(3))


# Frechet distance.


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    mean_a, mean_b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.5, 0.0, 3.0])
    std_a, std_b = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 2.0, 0.25])
    expected = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())
    a, b = gaussian(mean_a, std_a.square().diag()), gaussian(mean_b, std_b.square().diag())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert expected == 0.25 + 4 + 4 + 0.0625


@pytest.mark.parametrize("width", [1, 2, 10, 100, 300])  # 300: more than one block of a product
def test_frechet_equals_scipy_matrix_square_root(width):
    cov_a, cov_b, shift = covariance(width, 1, 3 * width), covariance(width, 2, 3 * width), features(1, width, 3)[0]
    root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real
    expected = float(shift.square().sum() + cov_a.trace() + cov_b.trace()) - 2 * float(np.trace(root))
    a, b = gaussian(torch.zeros(width), cov_a), gaussian(shift, cov_b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num", [2, 30, 1000])  # 2 and 30 rows of 64 features: singular covariances
def test_frechet_of_a_set_with_itself_is_zero(num):
    stats = FeatureStats().append(features(num, 64) * 5 + 1)
    assert 0 <= frechet_distance(stats, stats) < 1e-5 * float(stats.cov.trace())


@pytest.mark.parametrize(("rank_a", "rank_b"), [(3, 3), (3, 20), (20, 3), (1, 1)])
def test_frechet_of_singular_covariances_equals_the_nuclear_norm(rank_a, rank_b):
    # With C = X^T X for both, Tr (C_a C_b)^(1/2) is the sum of the singular values of X_a X_b^T: no matrix root needed.
    x_a, x_b = features(rank_a, 20, 1), features(rank_b, 20, 2)
    expected = float(torch.linalg.svdvals(x_a @ x_b.T).sum())
    assert sqrt_trace(x_a.T @ x_a, x_b.T @ x_b) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_constant_features_is_the_distance_of_the_means():
    a, b = FeatureStats().append(torch.zeros(10, 3)), FeatureStats().append(torch.full((10, 3), 2.0))
    assert frechet_distance(a, b) == 12.0


def test_frechet_grows_with_the_difference():
    x = features(2000, 8)
    real = FeatureStats().append(x)
    distances = [frechet_distance(real, FeatureStats().append(x * scale)) for scale in (1, 1.1, 1.5, 3)]
    assert distances == sorted(distances)
    assert distances[1] == pytest.approx(0.01 * float(real.cov.trace() + real.mean.square().sum()), rel=1e-9)


def test_frechet_refuses_two_widths():
    with pytest.raises(ValueError, match="2 and 3 features wide"):
        frechet_distance(FeatureStats().append(torch.ones(5, 2)), FeatureStats().append(torch.ones(5, 3)))


# Precision, recall, density, coverage.


def brute_force(real, fake, k):
    """The four definitions, with loops and exact differences."""

    def radii(x):
        return [sorted(float((a - b).norm()) for j, b in enumerate(x) if j != i)[k - 1] for i, a in enumerate(x)]

    real_radii, fake_radii = radii(real), radii(fake)
    distance = [[float((f - r).norm()) for r in real] for f in fake]
    n, m = range(len(real)), range(len(fake))
    precision = np.mean([any(distance[j][i] <= real_radii[i] for i in n) for j in m])
    recall = np.mean([any(distance[j][i] <= fake_radii[j] for j in m) for i in n])
    density = np.sum([[distance[j][i] < real_radii[i] for i in n] for j in m]) / (k * len(fake))
    coverage = np.mean([any(distance[j][i] < real_radii[i] for j in m) for i in n])
    return precision, recall, density, coverage


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_coverage_equal_brute_force(k, chunk):
    real, fake = features(40, 4, 1), features(31, 4, 2) * 1.5 + 1
    measured = *precision_recall(real, fake, k, chunk), *density_coverage(real, fake, k, chunk)
    assert measured == pytest.approx(brute_force(real, fake, k))
    assert 0 < measured[0] < 1
    assert 0 < measured[1] < 1


def test_precision_recall_on_a_line():
    # With k = 1 the reals' balls are 0 +- 1, 1 +- 1, -3 +- 3, the fakes' 0.5 +- 0.5, 1 +- 0.5, 10 +- 9.
    real, fake = torch.tensor([[0.0], [1.0], [-3.0]]), torch.tensor([[0.5], [1.0], [10.0]])
    assert precision_recall(real, fake, k=1) == pytest.approx((2 / 3, 2 / 3))  # neither 10 nor -3 is in a ball
    assert density_coverage(real, fake, k=1) == pytest.approx((3 / 3, 2 / 3))  # 1 is on the surface of the ball of 0


def test_a_point_on_the_surface_is_inside_a_closed_ball_and_outside_an_open_one():
    real, fake = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[-3.0, -4.0], [30.0, 40.0]])
    assert precision_recall(real, fake, k=1)[0] == 0.5
    assert density_coverage(real, fake, k=1) == (0.0, 0.0)


def test_collapsed_fakes_have_precision_and_no_recall():
    real = features(400, 8, 1)
    collapsed = real[:1] + 1e-3 * features(400, 8, 2)
    precision, recall = precision_recall(real, collapsed)
    assert precision == 1.0
    assert recall <= 1 / 400
    precision, recall = precision_recall(collapsed, real)  # the other way round: no precision, full recall
    assert precision <= 1 / 400
    assert recall == 1.0
    density, coverage = density_coverage(real, collapsed)
    assert density > 0.5
    assert coverage < 0.1


def test_fakes_far_away_have_nothing():
    real = features(100, 8, 1)
    assert precision_recall(real, real + 1000) == (0.0, 0.0)
    assert density_coverage(real, real + 1000) == (0.0, 0.0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_copies_of_the_reals_are_all_inside(offset):
    real = features(500, 64, 1) + offset
    assert precision_recall(real, real.flip(0), chunk=128) == (1.0, 1.0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equal_reals_have_radius_zero_and_hold_only_their_copies(offset):
    one = features(1, 64, 1) + offset
    real = one.repeat(101, 1)  # each has 100 others at distance 0: its own place is left out, not its own value
    beside = one + 1e-2 * features(50, 64, 2)
    assert precision_recall(real, torch.cat([real[:50], beside])) == (0.5, 1.0)
    assert density_coverage(real, real) == (0.0, 0.0)


@pytest.mark.parametrize("chunk", [37, 2048])
def test_round_off_does_not_decide_on_copies_of_duplicates(chunk):
    # 60 different images, twice each: every ball has radius 0, which sums of products miss by 1e-12 either way.
    different = features(60, 2048, 1).abs()
    real, fake = different.repeat(2, 1), different[:45].repeat(2, 1)
    assert precision_recall(real, fake, k=1, chunk=chunk) == (1.0, 45 / 60)
    assert density_coverage(real, fake, k=1, chunk=chunk) == (0.0, 0.0)


@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
def test_neighbour_metrics_refuse(measure):
    x = torch.ones(10, 2)
    with pytest.raises(ValueError, match="got NaN or infinity in 10 of 10 rows"):
        measure(x, x * float("nan"))
    with pytest.raises(ValueError, match="2 wide and fake 3"):
        measure(x, torch.ones(10, 3))
    with pytest.raises(ValueError, match="got 10 real features; expected at least 11 for k = 10"):
        measure(x, x, k=10)
    with pytest.raises(ValueError, match="k = 0"):
        measure(x, x, k=0)
