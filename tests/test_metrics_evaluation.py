"""Names, needs, what each metric takes; records, cache, curves; one process against two."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageColor
import pytest
import torch

from metrics.compute import compute
from metrics.detectors import Identity, RandomProjection
from metrics.evaluation import Evaluation, Outcome, Sides
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.image_sets import FeatureRows, ImageSet, extract, shared
from metrics.metric_names import KINDS, parse_metric, parse_metrics, with_count
from metrics.plot import plot_curves, read_curves
from metrics.records import append_line, record, student
from metrics.reference_cache import ReferenceCache
from stylegan2_icgan.evaluation import during
from torch_utils.command_line import UserError
from torch_utils.curves import COLORS, HEIGHT, WIDTH
from training.config import LoopOptions


def rows(num, width=6, seed=0, shift=0.0):
    return (np.random.default_rng(seed).standard_normal((num, width)) + shift).astype(np.float32)


def feature_sides(real=None, fake=None, width=6, **more):
    return Sides(real, fake or FeatureRows(rows(200, width, 1), {}), Identity(width), **more)


def value(name, sides):
    metric = parse_metric(name)
    return compute(Evaluation([metric], sides), metric)


# Names.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fid50k_full", ("fid", 50_000, True, 0, "")),
        ("fid10k", ("fid", 10_000, False, 0, "")),
        ("fid", ("fid", 50_000, False, 0, "")),
        ("fid123_full", ("fid", 123, True, 0, "")),
        ("kid50k_full", ("kid", 50_000, True, 0, "")),
        ("pr50k3_full", ("pr", 50_000, True, 3, "")),
        ("pr50k3", ("pr", 50_000, False, 3, "")),
        ("pr500_3_full", ("pr", 500, True, 3, "")),
        ("dc10k5_full", ("dc", 10_000, True, 5, "")),
        ("is50k", ("is", 50_000, False, 0, "")),
        ("ppl2_wend", ("ppl", 50_000, False, 0, "2_wend")),
        ("ppl_zfull", ("ppl", 50_000, False, 0, "_zfull")),
        ("ppl2_zend10k", ("ppl", 10_000, False, 0, "2_zend")),
        ("fid_seen", ("fid_combination", 50_000, False, 0, "seen")),
        ("fid10k_unseen", ("fid_combination", 10_000, False, 0, "unseen")),
        ("fid50k_few", ("fid_strata", 50_000, False, 0, "few")),
        ("fid50k_intra", ("fid_intra", 50_000, False, 0, "")),
        ("lpips_instance5k", ("lpips_instance", 5_000, False, 0, "")),
        ("instance_pr5k3", ("instance_pr", 5_000, False, 3, "")),
        ("memorisation", ("memorisation", 5_000, False, 0, "")),
    ],
)
def test_names_mean(name, expected):
    metric = parse_metric(name)
    assert (metric.kind, metric.num, metric.full, metric.k, metric.part) == expected


def test_examples_are_names_of_their_kind():
    assert [parse_metric(row.example).kind for row in KINDS.values()] == list(KINDS)


@pytest.mark.parametrize("name", ["fid50k_ful", "pr50k", "fid-5", "ppl2_xend", "fid0", "fid1k_full_full", "dc10k0"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match=f"--metrics={name}"):
        parse_metric(name)


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean 'fid50k_full'\?"):
        parse_metric("fid50k_ful")
    assert [m.name for m in parse_metrics("fid10k, is50k,fid10k")] == ["fid10k", "is50k"]
    with pytest.raises(UserError, match="separated by commas"):
        parse_metrics(" , ")


@pytest.mark.parametrize(
    ("name", "smaller"),
    [
        ("fid50k_full", "fid60_full"),
        ("fid500_few", "fid60_few"),
        ("fid_intra", "fid60_intra"),
        ("kid", "kid60"),
        ("pr50k3_full", "pr60_3_full"),
        ("dc500_5", "dc60_5"),
        ("memorisation5k", "memorisation60"),
    ],
)
def test_name_of_a_smaller_count_is_that_of_the_same_metric(name, smaller):
    assert with_count(name, 60) == smaller
    assert parse_metric(smaller) == replace(parse_metric(name), name=smaller, num=60)


# What each metric takes.


def test_fid_takes_as_many_as_its_name_says():
    real, fake = FeatureRows(rows(300), {}), FeatureRows(rows(200, seed=1, shift=1), {})
    outcome = value("fid100_full", feature_sides(real, fake))
    a, b = (FeatureStats().append(torch.from_numpy(x)) for x in (rows(300), rows(200, seed=1, shift=1)[:100]))
    assert outcome.values == {"fid100_full": pytest.approx(frechet_distance(a, b), rel=1e-9)}
    assert (outcome.num_real, outcome.num_fake) == (300, 100)
    assert value("fid100", feature_sides(real, fake)).num_real == 100


def test_precision_and_recall_are_named_rightly():
    real = rows(200)
    collapsed = real[:1] + 1e-3 * rows(200, seed=2)
    outcome = value("pr200_3_full", feature_sides(FeatureRows(real, {}), FeatureRows(collapsed, {})))
    assert outcome.values["pr200_3_full_precision"] == 1.0
    assert outcome.values["pr200_3_full_recall"] < 0.02
    outcome = value("dc200_5", feature_sides(FeatureRows(real, {}), FeatureRows(real, {})))
    assert outcome.values["dc200_5_coverage"] == 1.0
    assert outcome.values["dc200_5_density"] == pytest.approx(1, abs=0.3)


def strata():
    """Class 0 has 120 training images, class 1 has 21, class 2 has 20, class 3 none."""
    training = FeatureRows(rows(161), {}, np.repeat([0, 1, 2], [120, 21, 20]))
    real_ids, fake_ids = np.arange(400) % 4, np.arange(800) // 2 % 4
    shift = np.array([0.0, 1.0, 2.0, 3.0])
    real = FeatureRows(rows(400, seed=1), {}, real_ids)
    fake = FeatureRows((rows(800, seed=2) + shift[fake_ids][:, None]).astype(np.float32), {}, fake_ids)
    return feature_sides(real, fake, training=training), real_ids, fake_ids


@pytest.mark.parametrize(("part", "classes"), [("many", [0]), ("medium", [1]), ("few", [2, 3])])
def test_stratified_fid_goes_by_the_training_images_of_a_class(part, classes):
    sides, real_ids, fake_ids = strata()
    outcome = value(f"fid800_{part}", sides)
    shift = np.array([0.0, 1.0, 2.0, 3.0])
    fakes = (rows(800, seed=2) + shift[fake_ids][:, None]).astype(np.float32)[np.isin(fake_ids, classes)]
    a, b = (FeatureStats().append(torch.from_numpy(x)) for x in (rows(400, seed=1)[np.isin(real_ids, classes)], fakes))
    assert outcome.values[f"fid800_{part}"] == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert (outcome.num_real, outcome.num_fake) == (a.num, b.num)


@pytest.mark.parametrize("name", ["is100", "pr100_3", "dc100_5", "fid100", "instance_pr100_3"])
def test_results_have_the_names_that_were_announced(name):
    fakes = Counting(None) if name == "is100" else FeatureRows(rows(200), {}, instance_ids=np.arange(200) // 10)
    fakes.copies = lambda count: fakes
    sides = feature_sides(FeatureRows(rows(100), {}), fakes)
    sides = replace(sides, detector=RandomProjection()) if name == "is100" else sides
    assert list(value(name, sides).values) == parse_metric(name).results


def test_intra_class_fid_is_the_mean_over_classes():
    sides, _, _ = strata()
    outcome = value("fid800_intra", sides)
    assert outcome.values["fid800_intra"] > value("fid800_full", sides).values["fid800_full"]
    assert outcome.values["fid800_intra"] == pytest.approx(6 * (0 + 1 + 4 + 9) / 4, rel=0.15)
    assert "4 classes, 0 left out" in outcome.notes[0]


def test_seen_and_unseen_go_by_the_instance():
    seen = np.arange(100) % 2 == 0
    real = rows(100) + np.where(seen, 0, 5)[:, None].astype(np.float32)
    instances = np.arange(300) % 100
    fake = real[instances] + 0.01 * rows(300, seed=3)
    sides = feature_sides(FeatureRows(real, {}, seen_mask=seen), FeatureRows(fake, {}, instance_ids=instances))
    outcomes = {part: value(f"fid300_{part}", sides) for part in ("seen", "unseen")}
    for part, outcome in outcomes.items():
        assert outcome.values[f"fid300_{part}"] < 0.01
        assert (outcome.num_real, outcome.num_fake) == (50, 150)


def test_instance_distance_and_memorisation_of_copies():
    real = rows(100)
    instances = np.arange(60)
    sides = feature_sides(FeatureRows(real, {}), FeatureRows(real[:60], {}, instance_ids=instances), neighbours=5)
    assert value("instance_distance60", sides).values["instance_distance60"] == 0
    assert value("memorisation60", sides).values["memorisation60"] == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fid500", "takes 500 generated images, there are 200; name a smaller count, for example fid200"),
        ("pr50k3_full", "for example pr200_3_full"),
        ("is100", "a detector that classifies"),
        ("ppl2_wend", "a generator"),
        ("lpips_instance100", "a generator"),
        ("fid100_few", "class labels"),
        ("fid100_seen", "which combinations of classes"),
        ("instance_distance100", "conditioned on instances"),
        ("pr200_200", "k = 200 needs more than 200 images"),
        ("fid100", "a reference: --data=ZIP"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_extracted(name, message):
    class Untouched(FeatureRows):
        def batches(self, ids):
            raise AssertionError("extracted")

    real = None if name == "fid100" else Untouched(rows(300), {})
    with pytest.raises(UserError, match=message) as caught:
        Evaluation([parse_metric(name)], feature_sides(real, Untouched(rows(200), {})))
    assert "\n" not in str(caught.value)


def test_too_few_references_are_refused():
    with pytest.raises(UserError, match="takes at least 4 reference images, there are 3"):
        Evaluation([parse_metric("pr100_3")], feature_sides(FeatureRows(rows(3), {})))
    with pytest.raises(UserError, match="there are 3; expected at least 4"):
        Evaluation([parse_metric("pr100_3")], feature_sides(FeatureRows(rows(50), {}), FeatureRows(rows(3), {})))


class Counting(ImageSet):
    """Digits-like noise images, and how many were asked for."""

    def __init__(self, num, content="x"):
        super().__init__({"content": content}, num)
        self.made = 0

    def batches(self, ids):
        for some in ids:
            self.made += len(some)
            draw = (np.random.default_rng(int(i)).integers(0, 256, (1, 8, 8), dtype=np.uint8) for i in some)
            yield torch.from_numpy(np.stack(list(draw)))


def test_features_are_made_once_for_all_metrics():
    real, fake = Counting(300), Counting(None)
    metrics = parse_metrics("fid200_full,kid100_full,pr200_3_full,dc100_5_full")
    evaluation = Evaluation(metrics, Sides(real, fake, RandomProjection()))
    for metric in metrics:
        compute(evaluation, metric)
    assert (real.made, fake.made) == (300, 200)


def test_fid_alone_is_the_same_number_as_among_others():
    alone = value("fid200_full", Sides(Counting(300), Counting(None), RandomProjection()))
    metrics = parse_metrics("fid200_full,kid100_full")
    together = compute(Evaluation(metrics, Sides(Counting(300), Counting(None), RandomProjection())), metrics[0])
    assert alone.values == together.values


def test_features_that_are_no_numbers_name_the_image():
    class Broken(RandomProjection):
        def features(self, images):
            return super().features(images) / (images[:, 0, 0, :1] != images[3, 0, 0, :1])

    with pytest.raises(UserError, match="--detector=random: from image 0 on got NaN or infinity"):
        list(extract(Counting(10), Broken(), np.arange(10)))


# The cache of what is known about a reference.


def test_cache_goes_by_content_and_detector(tmp_path):
    def fid(content, how="clean"):
        real, cache = Counting(300, content), ReferenceCache(tmp_path)
        outcome = value("fid200_full", Sides(real, Counting(None), RandomProjection(how), cache=cache))
        return real.made, outcome.values["fid200_full"]

    first = fid("a")
    assert fid("a") == (0, first[1])  # the very bits
    assert fid("b")[0] == 300
    assert fid("a", how="tf")[0] == 300
    assert fid("") == (300, first[1])  # nothing known of its content: never kept
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert fid("a") == first  # damaged: made again
    assert fid("a")[0] == 0


def test_reference_is_looked_at_once_for_several_draws_also_without_a_folder():
    real, cache, metrics = Counting(300), ReferenceCache(None), parse_metrics("fid200_full,kid100_full")
    for _ in range(3):
        evaluation = Evaluation(metrics, Sides(real, Counting(None), RandomProjection(), cache=cache))
        for metric in metrics:
            compute(evaluation, metric)
    assert real.made == 300


def test_cache_that_can_not_be_written_costs_nothing_else(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = ReferenceCache(tmp_path / "file" / "below")
    assert cache({"content": "a"}, lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]


# Records.


def outcomes(*values):
    return [Outcome({"fid1k": v}, {"fid1k": None}, 10, 20, ["a note"]) for v in values]


def test_record_of_several_seeds_has_an_interval():
    line = record(parse_metric("fid1k"), outcomes(1.0, 2.0, 3.0), [0, 1, 2], {"detector": {"name": "x"}})
    assert line["results"] == {"fid1k": 2.0}
    assert line["standard_error"]["fid1k"] == pytest.approx(1 / 3**0.5)
    low, high = line["interval95"]["fid1k"]
    assert (low + high) / 2 == pytest.approx(2)
    assert (high - low) / 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)  # Student, 2 degrees of freedom
    assert line["notes"] == ["a note"]
    assert student(1000) == pytest.approx(1.962, abs=1e-3)


def test_record_of_one_seed_has_the_metrics_own_error():
    line = record(parse_metric("fid1k"), outcomes(1.5), [0], {})
    assert line["standard_error"] == {"fid1k": None}
    assert "interval95" not in line
    assert {"num_real", "num_fake", "seeds", "versions", "timestamp"} <= set(line)
    infinite = record(parse_metric("fid1k"), outcomes(float("inf")), [0], {})
    assert json.loads(json.dumps(infinite, allow_nan=False))["results"]["fid1k"] == "inf"


def test_lines_are_appended_after_one_that_was_cut_short(tmp_path):
    path = tmp_path / "new" / "metric-fid1k.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": ')
    append_line(path, {"a": 2})
    assert path.read_text().splitlines() == ['{"a": 1}', '{"a": ', '{"a": 2}']


def test_curves_are_drawn_over_snapshots(tmp_path):
    for kimg, fid in ((2.0, 30.0), (1.0, 50.0), (2.0, 20.0), (3.0, "inf")):
        append_line(tmp_path / "metric-fid1k.jsonl", {"kimg": kimg, "results": {"fid1k": fid}})
    (tmp_path / "metric-is1k.jsonl").write_text("{cut short")
    assert read_curves(tmp_path) == {"fid1k": {1.0: 50.0, 2.0: 20.0}}  # the last line of a snapshot counts
    with PIL.Image.open(plot_curves(tmp_path)) as picture:
        assert picture.size == (WIDTH, HEIGHT)  # one panel
        colours = {colour for _, colour in picture.getcolors(4096)}
    assert PIL.ImageColor.getrgb(COLORS[0]) in colours  # with a line in it
    with pytest.raises(UserError, match="run calc_metrics"):
        plot_curves(tmp_path / "none")


# Several processes.


def in_two_processes(work, folder):
    """What `work()` gives in each of two processes that meet by gloo."""

    def process(rank):
        store = torch.distributed.FileStore(str(folder / "meeting"), 2)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
        (folder / f"{rank}.json").write_text(json.dumps(work()))
        torch.distributed.destroy_process_group()

    torch.multiprocessing.start_processes(process, nprocs=2, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_give_the_bits_of_one(tmp_path):
    metrics = parse_metrics("fid1000_full,kid300_full,pr300_3,is600")

    def measured(folder):
        real, fake = Counting(700), Counting(None)
        evaluation = Evaluation(metrics, Sides(real, fake, RandomProjection(), cache=ReferenceCache(folder)))
        values = [compute(evaluation, metric).values for metric in metrics]
        return real.made + fake.made, values

    made, values = measured(tmp_path / "one")
    pairs = in_two_processes(lambda: [measured(tmp_path / "two") for _ in range(2)], tmp_path)
    assert [found for pair in pairs for _, found in pair] == [values] * 4
    first, again = (sum(pair[number][0] for pair in pairs) for number in (0, 1))
    assert first == made  # the work was shared, none of it done twice
    assert again == made - 700  # reals from the cache, on both


def test_an_error_in_one_process_is_an_error_in_all(tmp_path):
    def make(numbers):
        for number in numbers:
            if number == 3:
                raise UserError("the fourth is broken")
            yield torch.tensor([number])

    def work():
        seen = []
        with pytest.raises(UserError) as caught:
            seen.extend(int(rows) for rows in shared(9, make))
        return seen, str(caught.value)

    assert in_two_processes(work, tmp_path) == [[[0, 1, 2], "the fourth is broken"]] * 2


def test_a_line_that_can_not_be_written_is_an_error_in_all(tmp_path, monkeypatch):
    """Else the first process would leave the measurement, and the others wait for it."""
    (tmp_path / "metric-fid48.jsonl").mkdir()
    monkeypatch.setattr(during, "SnapshotMetrics", lambda *_: Measuring())
    options = SimpleNamespace(loop=LoopOptions(metrics="fid48"), wants_instances=False)
    measure = during.make_measure(options, None, SimpleNamespace(networks={"G": None}), None, torch.device("cpu"))

    def work():
        with pytest.raises(UserError, match="can't be written") as caught:
            measure(tmp_path / "network-snapshot-000001.pt")
        return str(caught.value)

    first, second = in_two_processes(work, tmp_path)
    assert first == second


class Measuring:
    """Metrics that are measured at once."""

    def check(self, recipe, has_w):
        pass

    def __call__(self, snapshot):
        return [{"metric": "fid48", "results": {"fid48": 1.0}}]
