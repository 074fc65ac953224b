"""What the names of metrics mean: `fid50k_full`, `pr50k3_full`, `ppl2_wend`, `fid_seen`, with any count: `fid10k`.

A name says what is computed, of how many generated images, and with `_full` that all reference images count; without it
as many as are generated (200,000 at most of neighbour metrics, as in StyleGAN2-ADA, whose names these are).
"""

import re
from dataclasses import dataclass

from torch_utils.command_line import UserError, nearest


@dataclass(frozen=True)
class Metric:
    """A parsed name.

    Args:
        name: as given.
        kind: key of KINDS.
        num: generated images.
        full: whether all reference images count.
        k: neighbours, of kinds that have them.
        part: what the name says further: 'many', 'seen', 'zfull'.
    """

    name: str
    kind: str
    num: int
    full: bool = False
    k: int = 0
    part: str = ""

    @property
    def needs(self) -> frozenset[str]:
        return KINDS[self.kind].needs

    @property
    def results(self) -> list[str]:
        """Names of its values: 'fid50k_full', or 'pr50k3_full_precision' and 'pr50k3_full_recall'."""
        parts = PARTS.get(self.kind)
        return [self.name] if parts is None else [f"{self.name}_{part}" for part in parts]


@dataclass(frozen=True)
class Kind:
    """How names of a kind look, and what it takes to compute it.

    Args:
        pattern: of the whole name; groups num, k, part and full.
        default: the count where the name has none.
        needs: of REMEDIES.
        example: a name that is usual.
        about: one line.
    """

    pattern: str
    default: int
    needs: frozenset[str]
    example: str
    about: str


# Of metrics with several values.
PARTS = {
    "is": ("mean", "std"),
    "pr": ("precision", "recall"),
    "dc": ("density", "coverage"),
    "instance_pr": ("precision", "recall"),
}

# What a metric may need, and what to say where it is missing.
REMEDIES = {
    "real": "a reference: --data=ZIP",
    "rows": "all features in memory at once",
    "logits": "a detector that classifies: --detector=inception",
    "generator": "a generator: --network=FILE",
    "paths": "a generator that maps z to w, which BigGAN's does not: --network=FILE of a StyleGAN2",
    "classes": "class labels of the reference and of what is generated: data with labels in dataset.json",
    "training": "the training data, to count images per class: --train-data=ZIP",
    "combinations": "to know which combinations of classes were trained on: attribute `combination` in dataset.json "
    "of the reference, as dataset_tool.py writes for COCO's val",
    "instances": "samples conditioned on instances of the reference: a model with instances and --instances=data",
}

_NUM = r"(?P<num>\d+k?)?"
_NUM_K = r"(?:(?P<num>\d+k)|(?P<plain>\d+)_)(?P<k>\d+)"


def _kind(pattern: str, default: int, needs: str, example: str, about: str) -> Kind:
    return Kind(pattern, default, frozenset(needs.split()), example, about)


# fmt: off
KINDS: dict[str, Kind] = {
    "fid": _kind(rf"fid{_NUM}(?P<full>_full)?", 50_000, "real", "fid50k_full", "Frechet distance"),
    "fid_strata": _kind(rf"fid{_NUM}_(?P<part>many|medium|few)", 50_000, "real rows classes training", "fid50k_few",
                        "FID of classes with >= 100, 21 to 99, <= 20 training images"),
    "fid_combination": _kind(rf"fid{_NUM}_(?P<part>seen|unseen)", 50_000,
                             "real rows combinations instances", "fid_seen",
                             "FID of class combinations that are, or are not, among the training images"),
    "fid_intra": _kind(rf"fid{_NUM}_intra", 50_000, "real rows classes", "fid50k_intra", "mean of the FID per class"),
    "kid": _kind(rf"kid{_NUM}(?P<full>_full)?", 50_000, "real rows", "kid50k_full", "kernel distance"),
    "is": _kind(rf"is{_NUM}", 50_000, "logits", "is50k", "Inception Score"),
    "pr": _kind(rf"pr{_NUM_K}(?P<full>_full)?", 50_000, "real rows", "pr50k3_full", "improved precision and recall"),
    "dc": _kind(rf"dc{_NUM_K}(?P<full>_full)?", 50_000, "real rows", "dc50k5_full", "density and coverage"),
    "ppl": _kind(rf"ppl(?P<part>2?_[wz](?:full|end)){_NUM}", 50_000, "generator paths", "ppl2_wend",
                 "perceptual path length; ppl_* crops faces, ppl2_* does not"),
    "lpips_instance": _kind(rf"lpips_instance{_NUM}", 5_000, "generator", "lpips_instance5k",
                            "LPIPS between two samples of the same condition"),
    "instance_distance": _kind(rf"instance_distance{_NUM}", 5_000, "real rows instances", "instance_distance5k",
                               "distance to the instance over its neighbourhood's radius"),
    "instance_pr": _kind(rf"instance_pr{_NUM_K}", 5_000, "real rows instances generator", "instance_pr5k3",
                         "precision and recall within neighbourhoods"),
    "memorisation": _kind(rf"memorisation{_NUM}", 5_000, "real rows", "memorisation5k",
                          "share of samples closer to a training image than that is to its nearest"),
}
# fmt: on


def parse_metric(name: str) -> Metric:
    """
    Raises:
        UserError: no such metric; the nearest name is offered.
    """
    for kind, row in KINDS.items():
        match = re.fullmatch(row.pattern, name)
        if match is None:
            continue
        found = match.groupdict()
        count = found.get("num") or found.get("plain")
        num = _count(count) if count else row.default
        k = int(found.get("k") or 0)
        if num < 2 or ("k" in found and k < 1):
            raise UserError(f"--metrics={name}: expected at least 2 images and k of at least 1")
        return Metric(name, kind, num, bool(found.get("full")), k, found.get("part") or "")
    examples = [row.example for row in KINDS.values()]
    raise UserError(f"--metrics={name} is unknown; there are {', '.join(examples)}.{nearest(name, examples)}")


def parse_metrics(names: str) -> list[Metric]:
    """'fid50k_full,kid50k_full' -> metrics, each once.

    Raises:
        UserError: one that is unknown, or none at all.
    """
    words = [word.strip() for word in names.split(",") if word.strip()]
    if not words:
        raise UserError(f"--metrics={names}: expected names separated by commas, for example fid50k_full,kid50k_full")
    return [parse_metric(word) for word in dict.fromkeys(words)]


def with_count(name: str, num: int) -> str:
    """The same metric of `num` files: 'fid50k_full', 60 -> 'fid60_full'; 'pr50k3', 60 -> 'pr60_3'."""
    kind = re.match(r"[a-z]+", name)
    assert kind is not None  # of a name that was parsed
    count = f"{num}_" if kind[0] in ("pr", "dc") else str(num)
    return kind[0] + count + re.sub(r"^\d+k?(_(?=\d))?", "", name[kind.end() :])


def higher_is_better(result: str) -> bool:
    """Whether a larger value of a result (`pr50k3_full_recall`, `fid10k`) is the better one."""
    return re.match(r"is\d*k?(_|$)|pr\d|dc\d|lpips|instance_pr", result) is not None


def _count(text: str) -> int:
    """'50k' -> 50000."""
    return int(text[:-1]) * 1000 if text.endswith("k") else int(text)
