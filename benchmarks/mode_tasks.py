"""What the methods are compared on: points of two mixtures, stacked digits; what a run is, and how it is measured."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import points
from benchmarks.mixtures import MIXTURES
from benchmarks.mode_methods import Adam, Method
from benchmarks.stacked_digits import StackedDigits
from stylegan2_icgan.clusters import Clusters
from training.augment import Augmentation
from training.condition import Condition, Sample
from training.config import LoopOptions
from training.dataset import Draws, SampleSource
from training.ema import Ema
from training.loading import fake_draws, real_draws
from training.networks import dcgan, masked, unconditional
from training.networks.prior import UniformPrior
from training.randomness import integers, seed_everything
from training.rounds import Rounds

_NEIGHBOUR, _EVALUATION = 81, 82  # streams of randomness
CPU = torch.device("cpu")
EMA_STEPS = 200  # half-life of the average generator
ROWS = 1000  # images at a time, where nothing is learned


@dataclass(frozen=True)
class Known:
    """Images that are there as a whole.

    Args:
        pixels: float32 [N, C, H, W], as the discriminator is shown them.
        modes: int64 [N].
        h: float32 [N, h_dim], features whose distances say what is near.
    """

    pixels: torch.Tensor
    modes: np.ndarray
    h: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: np.ndarray) -> torch.Tensor:
        return self.pixels[torch.from_numpy(indices)]


class KnownSource(SampleSource):
    """Draws from `Known`, conditioned on nothing, the mode, a cluster or an instance.

    With instances, as `InstanceDataset`: h of image i, and one of its k nearest neighbours as the real image.
    """

    name = "known"

    def __init__(self, known: Known, cond: str, num_modes: int, clusters: Clusters, k: int) -> None:
        self.known, self.cond, self.clusters, self.k = known, cond, clusters, k
        self.num_channels, self.resolution = known.pixels.shape[1:3]
        self.c_dim = {"class": num_modes, "cluster": clusters.count}.get(cond, 0)
        self.h_dim = known.h.shape[1] if cond == "instance" else 0
        self.neighbours = nearest(known.h, k) if cond == "instance" else None

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, draws: Draws) -> Sample:
        shown = draws.index
        if self.neighbours is not None:
            shown = self.neighbours[draws.index, integers(self.k, draws.seed, _NEIGHBOUR)]
        condition = self.conditions(draws)
        return Sample(self.known.images(shown), condition.c, condition.h, torch.from_numpy(draws.index))

    def conditions(self, draws: Draws) -> Condition:
        i = draws.index
        c, h = torch.zeros(len(i), 0), torch.zeros(len(i), 0)
        if self.c_dim:
            labels = self.known.modes if self.cond == "class" else self.clusters.labels
            c = torch.nn.functional.one_hot(torch.from_numpy(labels[i]), self.c_dim).float()
        if self.h_dim:
            h = self.known.h[torch.from_numpy(i)]
        return Condition(c, h)

    def refresh(self, step: int, networks: Mapping[str, torch.nn.Module]) -> None:
        if self.cond == "cluster":
            self.clusters.refresh(step, networks["D"])


def nearest(rows: torch.Tensor, k: int) -> np.ndarray:
    """int64 [N, k], the k nearest other rows of each, by Euclidean distance."""
    found = []
    for start in range(0, len(rows), ROWS):
        distance = torch.cdist(rows[start : start + ROWS], rows)
        own = torch.arange(len(distance))
        distance[own, start + own] = float("inf")
        found.append(distance.topk(k, largest=False).indices)
    return torch.cat(found).numpy()


class Classifying(masked.Discriminator):
    """Asked by `both` alone: the logit, which knows no class, and two logits for each class."""

    def __init__(self, trunk: torch.nn.Module, num_features: int, size: int, channels: int, num_classes: int) -> None:
        super().__init__(trunk, num_features, size, channels, c_dim=0, h_dim=0)
        self.classifier = torch.nn.Linear(num_features, 2 * num_classes)

    def both(self, img: torch.Tensor, c: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.features(img)
        return self.out(x), self.classifier(x)


@dataclass(frozen=True)
class Task:
    """One part of the table.

    Args:
        num_modes: there are.
        make: seed -> images to learn from.
        generator: z_dim -> network.
        trunk: whether it may have batch normalisation -> network, and features it has of an image.
        measure: float32 [N, C, H, W] images -> results.
        z_dim, embed_dim: widths of the noise and of an embedded condition.
        adam: optimiser.
        steps, batch: how long, and how many images a step.
        clusters, sample, recluster: how many clusters of how many images, and steps between two clusterings.
        k: neighbours.
        samples: images that are measured.
    """

    num_modes: int
    make: Callable[[int], Known]
    generator: Callable[[int], unconditional.Generator]
    trunk: Callable[[bool], tuple[torch.nn.Module, int]]
    measure: Callable[[torch.Tensor], dict[str, float]]
    z_dim: int
    embed_dim: int
    adam: Adam
    steps: int
    batch: int
    clusters: int
    sample: int
    recluster: int
    k: int
    samples: int

    def networks(self, method: Method, source: SampleSource) -> dict[str, torch.nn.Module]:
        c_dim, h_dim = source.c_dim, source.h_dim
        z_dim = self.z_dim + self.embed_dim * masked.num_conditions(c_dim, h_dim)
        G: torch.nn.Module = masked.Generator(self.generator(z_dim), c_dim, h_dim, self.embed_dim)
        trunk, num_features = self.trunk(method.batch_norm)
        shape = num_features, source.resolution, source.num_channels
        if method.classifier:
            return {"G": G, "D": Classifying(trunk, *shape, num_classes=c_dim)}
        D = masked.Discriminator(trunk, *shape, c_dim, h_dim)
        return {"G": UniformPrior(G) if method.uniform else G, "D": D}


def train(task: Task, method: Method, seed: int, steps: int) -> dict[str, float]:
    """Train, and measure the average generator. What is measured is conditioned as the fakes of training are.

    That is: on the stored clusters, classes or instances of images at random, not on those of new images.
    """
    known = task.make(seed)
    clusters = Clusters(known, task.clusters, task.recluster, task.sample, seed)
    source = KnownSource(known, method.cond, task.num_modes, clusters, task.k)
    seed_everything(seed)
    system = method.system(task.networks(method, source), task.adam)
    ema = Ema(system.networks["G"], EMA_STEPS * task.batch / 1000, rampup=0.05, average_buffers=True)
    rounds = Rounds(system, source, LoopOptions(batch=task.batch, seed=seed), Augmentation(), CPU)
    for step in range(steps):
        source.refresh(step, system.networks)
        cur_nimg = step * task.batch
        sample = source[real_draws(len(source), seed, cur_nimg, task.batch)]
        for number, phase in enumerate(system.phases):
            if phase.due(step):
                system.run(phase, rounds.of(number, sample.image, source.condition(sample), cur_nimg))
        ema.update(system.networks["G"], cur_nimg + task.batch, task.batch)
    return task.measure(generate(ema.average, source, task.samples, seed))


@torch.no_grad()
def generate(G: torch.nn.Module, source: SampleSource, count: int, seed: int) -> torch.Tensor:
    """float32 [count, C, H, W] of a generator in eval mode."""
    condition = source.conditions(fake_draws(len(source), seed, _EVALUATION, 0, count))
    z = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, G.z_dim), dtype=np.float32))
    return torch.cat([G(some, cond.c, cond.h) for some, cond in zip(z.split(ROWS), condition.split(ROWS), strict=True)])


def mixture(name: str, width: int = 64) -> Task:
    """As arXiv 2006.10728, section 4.1, in small and faster: there width 400, learning rate 1e-4, 100,000 steps."""
    law = MIXTURES[name]

    def make(seed: int) -> Known:
        drawn, modes = law.draw(20_000, seed)
        rows = torch.from_numpy(drawn)
        return Known(rows[:, :, None, None], modes, rows)

    return Task(
        num_modes=len(law),
        make=make,
        generator=lambda z_dim: points.Generator(z_dim, width),
        trunk=lambda batch_norm: (points.trunk(width // 2), width // 2),
        measure=lambda images: law.measure(images.flatten(1).numpy()),
        z_dim=2,
        embed_dim=32,
        adam=Adam(1e-3, (0.8, 0.999)),
        steps=2500,
        batch=100,
        clusters=50,
        sample=10_000,
        recluster=1000,
        k=50,
        samples=50_000,
    )


def stacked() -> Task:
    """Three digits, one a channel: 1,000 modes. As arXiv 2006.10728, in small: there 32 pixels, width 64, 1e-4."""

    @functools.cache
    def digits() -> StackedDigits:
        return StackedDigits()

    def make(seed: int) -> Known:
        pixels, modes = digits().draw(20_000, seed)
        return Known(pixels, modes, principal(pixels.flatten(1), 64))

    def trunk(batch_norm: bool) -> tuple[torch.nn.Module, int]:
        network = dcgan.Trunk(16, 3, ch=16, batch_norm=batch_norm)
        dcgan.initialise(network)
        return network, network.channels * dcgan.FIRST**2

    return Task(
        num_modes=1000,
        make=make,
        generator=lambda z_dim: dcgan.Generator(z_dim, 16, 3, ch=16),
        trunk=trunk,
        measure=lambda images: digits().measure(images),
        z_dim=64,
        embed_dim=64,
        adam=Adam(5e-4, (0.0, 0.99)),
        steps=1500,
        batch=64,
        clusters=100,
        sample=10_000,
        recluster=500,
        k=50,
        samples=10_000,
    )


def principal(rows: torch.Tensor, width: int) -> torch.Tensor:
    """float32 [N, width], the first principal components of rows [N, d], each row of unit length."""
    centred = rows - rows.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return torch.nn.functional.normalize(centred @ vectors[:, -width:], dim=1)


TASKS = {**{name: mixture(name) for name in MIXTURES}, "stacked": stacked()}
