"""KID, Inception Score, path length, distances and instance metrics: closed forms and brute force."""

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.distances import Rows, distance_blocks, nearest, squared_radii
from metrics.feature_stats import FeatureStats, GroupedStats
from metrics.frechet import frechet_distance, frechet_error, rank_note
from metrics.inception_score import InceptionScore
from metrics.instance_metrics import memorised, neighbourhood_precision_recall, relative_distance
from metrics.kernel_distance import kernel_distance
from metrics.path_length import path_length, slerp
from metrics.precision_recall import density_coverage, precision_recall


def features(num, width, seed=0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Distances.


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("k", [1, 4])
def test_radii_equal_brute_force(k, chunk):
    x = features(33, 3)
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    expected = apart.sort(dim=1).values[:, k - 1].square()
    torch.testing.assert_close(squared_radii(Rows(x), k, chunk), expected, rtol=1e-12, atol=1e-12)


def test_radii_compute_half_of_all_pairs():
    rows = Rows(features(50, 2))
    blocks = list(distance_blocks(rows, rows, chunk=10, upper=True))
    assert len(blocks) == 15


@pytest.mark.parametrize("chunk", [1, 6, 100])
def test_nearest_row_is_found(chunk):
    rows = features(20, 4)
    twins = Rows(torch.cat([rows, rows]))
    squared, which = nearest(Rows(rows + 1e-3, twins.centre), twins, 1, chunk=chunk)
    assert (which[:, 0] % 20).tolist() == list(range(20))
    torch.testing.assert_close(squared[:, 0], torch.full((20,), 4e-6, dtype=torch.float64), rtol=1e-6, atol=1e-12)


def in_float64(queries, rows):
    """Squared distances, one difference after the other."""
    return (queries[:, None].double() - rows[None].double()).square().sum(dim=2)


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("width", [3, 700])
def test_bounds_hold_the_true_distances(width, chunk):
    a, b = features(40, width, 1).float() * 3 + 2, features(30, width, 2).float()
    rows_b = Rows(b)
    for block in distance_blocks(Rows(a, rows_b.centre), rows_b, chunk):
        true = in_float64(a[block.a], b[block.b])
        assert (block.least <= true).all()
        assert (block.most >= true).all()
        assert float((block.most - block.least).max()) < 2e-3 * float(true.max())


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_questions_that_float32_leaves_open_are_answered_in_float64(offset):
    """Points beside a sphere, by less than float32 can tell, among points that are clearly in or out."""
    centre = features(1, 200, 1)
    around = torch.nn.functional.normalize(features(300, 200, 2), dim=1)
    radius = torch.cat(
        [1 + 1e-9 * torch.linspace(-1, 1, 100).double(), torch.full((100,), 0.5), torch.full((100,), 2.0)]
    )
    points = centre + around * radius[:, None] + offset
    rows = Rows(points)
    single = points.float().double() - points  # float32 would move the points further than they are apart
    assert float(single.norm(dim=1).max()) > 1e-8
    inside, outside = 0, 0
    for block in distance_blocks(Rows(centre + offset, rows.centre), rows, chunk=64):
        true = in_float64(centre + offset, points[block.b])
        held = block.within(torch.ones(1, 1, dtype=torch.float64))
        clear = (true - 1).abs() > 1e-11 * 200
        assert torch.equal(held[clear], (true <= 1)[clear])
        inside, outside = inside + int(held.sum()), outside + int((~held).sum())
    assert 140 <= inside <= 160
    assert 140 <= outside <= 160


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25])
def test_distances_of_any_size_are_compared(scale):
    """Squares of float32 beyond 1e19 and below 1e-19 are none."""
    real, fake = features(60, 5, 1), features(50, 5, 2) * 1.3
    expected = precision_recall(real, fake), density_coverage(real, fake)
    assert (precision_recall(real * scale, fake * scale), density_coverage(real * scale, fake * scale)) == expected
    torch.testing.assert_close(squared_radii(Rows(real * scale), 3) / scale**2, squared_radii(Rows(real), 3))


@pytest.mark.parametrize("chunk", [7, 100])
def test_nearest_leaves_out_what_a_query_is(chunk):
    rows = features(50, 6)
    chosen = torch.tensor([3, 49, 0, 20])
    table = Rows(rows)
    squared, which = nearest(Rows(rows[chosen], table.centre), table, 4, own=chosen, chunk=chunk)
    apart = in_float64(rows[chosen], rows)
    apart[torch.arange(4), chosen] = torch.inf
    expected = apart.sort(dim=1)
    assert torch.equal(which, expected.indices[:, :4])
    torch.testing.assert_close(squared, expected.values[:, :4], rtol=1e-12, atol=0)


def test_more_equal_rows_than_a_shortlist_holds_are_all_neighbours():
    """Thirty points a hair apart: float32 sees thirty times the same."""
    hair = 1e-5 * features(30, 64, 2)
    rows = Rows(torch.cat([features(1, 64, 1) + hair, 5 + features(40, 64, 3)]))
    apart = in_float64(rows.features, rows.features).fill_diagonal_(torch.inf)
    expected = apart.sort(dim=1).values[:, 2]
    torch.testing.assert_close(squared_radii(rows, 3)[:30], expected[:30], rtol=1e-3, atol=0)
    torch.testing.assert_close(squared_radii(rows, 3)[30:], expected[30:], rtol=1e-12, atol=0)


def test_precision_of_products_that_a_process_has_chosen_changes_nothing_and_stays():
    real, fake = features(300, 64, 1).float(), features(200, 64, 2).float()
    expected = precision_recall(real, fake)
    torch.set_float32_matmul_precision("medium")
    try:
        assert precision_recall(real, fake) == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_sets_moved_apart_are_not_compared():
    with pytest.raises(ValueError, match="different centres"):
        nearest(Rows(features(5, 2, 1)), Rows(features(5, 2, 2)), 1)


def test_neighbour_metrics_take_float32_as_it_is():
    real, fake = features(300, 16, 1).float(), features(200, 16, 2).float() * 1.3
    exact = precision_recall(real.double(), fake.double()), density_coverage(real.double(), fake.double())
    assert (precision_recall(real, fake), density_coverage(real, fake)) == exact


# Frechet distance of too few rows.


def test_frechet_of_fewer_rows_than_features_is_finite_and_noted():
    a, b = (FeatureStats().append(features(20, 64, seed)) for seed in (1, 2))
    assert math.isfinite(frechet_distance(a, b))
    assert rank_note(a, b).startswith("only 20 images for 64 features")
    enough = FeatureStats().append(features(65, 64, 3))
    assert rank_note(enough, enough) == ""


def draws(num, seed, shift=0.1):
    mix = features(24, 24, 99)
    return features(num, 24, seed) @ mix * 1.1 + shift


def test_error_of_one_frechet_distance_is_the_spread_of_many():
    real = FeatureStats().append(draws(4000, 0, shift=0))
    distances, errors = [], []
    for seed in range(1, 61):
        groups = GroupedStats(600).append(draws(600, seed)).groups()
        distances.append(frechet_distance(real, reduce(add, groups)))
        errors.append(frechet_error(real, groups))
    spread = np.std(distances, ddof=1)  # itself known to 9 %
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.35)


def test_error_by_expansion_is_the_jackknife_itself():
    real = FeatureStats().append(draws(4000, 0, shift=0))
    groups = GroupedStats(20_000).append(draws(20_000, 1)).groups()
    left_out = [frechet_distance(real, reduce(add, groups[:g] + groups[g + 1 :])) for g in range(10)]
    assert frechet_error(real, groups) == pytest.approx(np.sqrt(9 * np.var(left_out)), rel=0.05)


def test_frechet_distance_without_a_derivative_has_no_error():
    real = FeatureStats().append(draws(4000, 0))
    assert frechet_error(real, GroupedStats(20).append(draws(20, 1)).groups()) is None  # fewer rows than features
    assert frechet_error(real, GroupedStats(3).append(draws(3, 1)).groups()) is None
    flat = torch.cat([draws(500, 1)[:, :-1], torch.ones(500, 1)], dim=1)
    assert frechet_error(real, GroupedStats(500).append(flat).groups()) is None  # a constant feature


@pytest.mark.parametrize("cuts", [[], [1, 5, 6, 30], [64]])
def test_groups_are_consecutive_and_make_the_whole(cuts):
    x = features(64, 3)
    stats = GroupedStats(64)
    for part in x.tensor_split(cuts):
        stats.append(part)
    groups = stats.groups()
    assert [group.num for group in groups] == [6, 6, 7, 6, 7, 6, 6, 7, 6, 7]
    torch.testing.assert_close(groups[0].mean, x[:6].mean(dim=0))
    torch.testing.assert_close(reduce(add, groups).cov, FeatureStats().append(x).cov)
    with pytest.raises(ValueError, match="more than the 64"):
        stats.append(x[:1])


# Kernel distance.


def brute_force_kernel(x, y):
    """arXiv:1801.01401 equation 4, with loops."""

    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_of_whole_sets_equals_the_definition():
    x, y = features(12, 5, 1), features(12, 5, 2) + 0.5
    value, error = kernel_distance(x, y)
    assert value == pytest.approx(brute_force_kernel(x, y), rel=1e-12)
    assert error is None  # a hundred times the same would have none, either


def test_kernel_distance_is_unbiased_and_its_error_honest():
    same, error = kernel_distance(features(3000, 8, 1), features(3000, 8, 2), num_subsets=40, subset_rows=200)
    assert abs(same) < 4 * error
    apart, _ = kernel_distance(features(3000, 8, 1), features(3000, 8, 2) + 0.5, num_subsets=40, subset_rows=200)
    assert apart > 20 * error


def test_kernel_distance_repeats_and_follows_its_seed():
    x, y = features(300, 4, 1), features(300, 4, 2)
    first = kernel_distance(x, y, 5, 50)
    assert kernel_distance(x, y, 5, 50) == first
    assert kernel_distance(x, y, 5, 50, seed=1) != first
    assert kernel_distance(x.float(), y.float(), 5, 50)[0] == pytest.approx(first[0], rel=1e-5, abs=1e-7)


def test_kernel_distance_refuses():
    with pytest.raises(ValueError, match="1 real and 5 fake"):
        kernel_distance(torch.ones(1, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match="2 wide and fake 3"):
        kernel_distance(torch.ones(5, 2), torch.ones(5, 3))
    with pytest.raises(ValueError, match="NaN"):
        kernel_distance(torch.ones(5, 2), torch.full((5, 2), torch.nan))


# Inception Score.


def score(logits, splits=1):
    stream = InceptionScore(len(logits), splits)
    stream.append(logits)
    return stream.result()


def test_score_of_certain_and_even_classes_is_their_number():
    certain = torch.eye(7).repeat(20, 1) * 1000
    assert score(certain)[0] == pytest.approx(7, rel=1e-12)
    assert score(torch.zeros(50, 7))[0] == pytest.approx(1, rel=1e-12)
    assert score(certain[:1].repeat(50, 1))[0] == pytest.approx(1, rel=1e-12)  # certain, but all alike


def test_score_splits_are_consecutive():
    logits = torch.cat([torch.eye(4).repeat(10, 1) * 1000, torch.zeros(40, 4)])
    mean, deviation = score(logits, splits=2)
    assert (mean, deviation) == (pytest.approx(2.5), pytest.approx(1.5))


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 17), max_size=6))
def test_score_does_not_depend_on_the_chunks(sizes):
    logits = features(53, 9)
    stream, start = InceptionScore(53, 5), 0
    for size in [*sizes, 53]:
        stream.append(logits[start : start + size])
        start = min(start + size, 53)
    assert stream.result() == score(logits, 5)


def test_score_refuses():
    with pytest.raises(ValueError, match="5 images for 10 splits"):
        InceptionScore(5)
    stream = InceptionScore(20)
    stream.append(torch.zeros(12, 3))
    with pytest.raises(ValueError, match="12 of 20"):
        stream.result()
    with pytest.raises(ValueError, match="more than the 20"):
        stream.append(torch.zeros(9, 3))
    with pytest.raises(ValueError, match="NaN"):
        stream.append(torch.full((1, 3), torch.nan))


# Path length.


def test_slerp_walks_a_quarter_of_a_circle():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    third = slerp(a, b, torch.tensor([[1 / 3]]))
    torch.testing.assert_close(third, torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))
    torch.testing.assert_close(slerp(a, a, torch.tensor([[0.5]])), torch.tensor([[1.0, 0.0]]))


def test_path_length_drops_a_hundredth_at_either_end():
    distances = torch.cat([torch.full((2,), -50.0), torch.full((200,), 3.0), torch.full((2,), 1e6)]).double()
    value, error = path_length(iter(distances.split(17)), epsilon=1e-2)
    assert value == pytest.approx(3.0 / 1e-4)
    assert error == pytest.approx(0)
    with pytest.raises(ValueError, match="finite"):
        path_length([torch.tensor([1.0, torch.nan])])


# Instance metrics.


def test_relative_distance_on_a_line():
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # with k = 2 the radii are 3, 2, 3, 6
    fake, instance = torch.tensor([[1.5], [5.0], [1.0]]), torch.tensor([0, 1, 3])
    mean = relative_distance(real, fake, instance, k=2)
    assert mean.value == pytest.approx((1.5 / 3 + 4 / 2 + 6 / 6) / 3)
    assert mean.error == pytest.approx(np.std([0.5, 2, 1], ddof=1) / 3**0.5)


def test_relative_distance_takes_the_instance_of_its_own_row():
    real = features(100, 8)
    instance = torch.arange(100)
    assert relative_distance(real, real, instance, k=5).value == 0
    assert relative_distance(real, real, instance.roll(1), k=5).value > 1
    equal = torch.zeros(10, 2)
    assert math.isinf(relative_distance(equal, equal + 1, torch.arange(10), k=3).value)
    assert relative_distance(equal, equal, torch.arange(10), k=3).value == 0


def clusters(num_clusters=6, each=12, spread=1.0):
    """Far apart on a line in the plane, and their rows."""
    centres = torch.arange(num_clusters).double() * 1000
    noise = features(num_clusters * each, 2) * spread
    return noise + torch.stack([centres.repeat_interleave(each), torch.zeros(num_clusters * each)], dim=1)


def test_neighbourhood_precision_and_recall_are_not_swapped():
    real = clusters()
    instance = torch.arange(0, 72, 12).repeat_interleave(10)
    collapsed = real[instance] + 1e-4 * features(60, 2, 3)
    precision, recall = neighbourhood_precision_recall(real, collapsed, instance, k=11)
    assert precision.value == 1.0
    assert recall.value <= 0.2
    wide = real[instance] + 20 * features(60, 2, 3)
    precision, recall = neighbourhood_precision_recall(real, wide, instance, k=11)
    assert precision.value < 0.2
    assert recall.value > 0.6


def test_neighbourhoods_do_not_share_samples():
    real = clusters()
    instance = torch.arange(0, 72, 12).repeat_interleave(12)
    own = real.clone()
    assert [m.value for m in neighbourhood_precision_recall(real, own, instance, k=11)] == [1.0, 1.0]
    others = real.roll(12, dims=0)  # every sample lies in the neighbourhood of another instance
    assert [m.value for m in neighbourhood_precision_recall(real, others, instance, k=11)] == [0.0, 0.0]


def test_neighbourhood_needs_enough_samples():
    with pytest.raises(ValueError, match="k = 11 and 3 samples an instance; expected at least 3 and 4"):
        neighbourhood_precision_recall(clusters(), features(6, 2), torch.tensor([0, 0, 0, 5, 5, 5]), k=11)
    with pytest.raises(ValueError, match="k = 72"):
        relative_distance(clusters(), features(1, 2), torch.tensor([0]), k=72)
    with pytest.raises(ValueError, match="2 samples and 1 instances"):
        relative_distance(clusters(), features(2, 2), torch.tensor([0]), k=2)


def test_copies_are_memorised_and_fresh_draws_mutual_neighbours():
    real = features(2000, 1, 1)
    assert memorised(real, real[:300]).value == 1.0
    assert memorised(real.repeat(2, 1), real[:300]).value == 1.0  # of images that are there twice, too
    assert memorised(real, real[:300] + 100).value == 0.0
    fresh = memorised(real, features(2000, 1, 2))
    assert abs(fresh.value - 2 / 3) < 5 * fresh.error  # on a line nearest neighbours are mutual twice in three times
