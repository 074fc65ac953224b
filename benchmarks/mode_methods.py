"""The methods that are compared: what each is conditioned on, and the phases that train it.

All have the same networks and number of steps, and Adam; a step takes one batch of real images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from training import loss, wasserstein
from training.classifier_loss import CLASSIFIERS, DClassifiedFake, DClassifiedReal, GClassified
from training.latent import LatentOptimisation, Optimised
from training.step import Term
from training.system import Phase, System, lazy_adam


@dataclass(frozen=True)
class Adam:
    """Of both networks."""

    lr: float
    betas: tuple[float, float]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        cond: what it is conditioned on: none, class, cluster or instance.
        build: the phases.
        uniform: noise is U(-1, 1).
        classifier: the discriminator tells the class, and is not told.
        batch_norm: whether the discriminator may compare images, where it has layers that do.
        betas: Adam's, where the method brings its own.
    """

    cond: str
    build: Callable[[], Sequence[Phase]]
    uniform: bool = False
    classifier: bool = False
    batch_norm: bool = True
    betas: tuple[float, float] | None = None

    def system(self, networks: dict[str, torch.nn.Module], adam: Adam) -> System:
        betas = self.betas or adam.betas
        optimizers: dict[str, torch.optim.Optimizer] = {
            name: lazy_adam(network, adam.lr, betas) for name, network in networks.items()
        }
        return System(networks, list(self.build()), optimizers)


def gan() -> Sequence[Phase]:
    """Non-saturating loss (arXiv 1406.2661), without a regulariser."""
    return phases([loss.DLogisticFake(loss.generated), loss.d_logistic_real], loss.GNonSaturating(loss.generated))


def wgan_gp() -> Sequence[Phase]:
    """arXiv 1704.00028, algorithm 1: five steps of the critic for each of the generator."""
    return phases([wasserstein.Critic(), wasserstein.GradientPenalty(10.0)], wasserstein.GWasserstein(), interval=5)


def logan() -> Sequence[Phase]:
    """LOGAN as StudioGAN has it for small networks: alpha 0.9, beta 0.1, c 0.8, w_r 0.1."""
    latent = LatentOptimisation(rate=0.9, damping=0.1, share=0.8, cost=0.1)
    fake, g_term = loss.DLogisticFake(loss.generated), loss.GNonSaturating(loss.generated)
    return phases([Optimised(fake, latent), loss.d_logistic_real], Optimised(g_term, latent))


def adc_gan() -> Sequence[Phase]:
    """arXiv 2107.10060, with its hinge loss and weight 1."""
    kind = CLASSIFIERS["adc"]
    return phases([DClassifiedFake(kind, 1.0), DClassifiedReal(kind, 1.0)], GClassified(kind, 1.0))


def phases(d_terms: Sequence[Term], g_term: Term, interval: int = 1) -> Sequence[Phase]:
    return [Phase("D", trains="D", terms=d_terms), Phase("G", trains="G", terms=[g_term], interval=interval)]


METHODS = {
    "GAN": Method("none", gan),
    "WGAN-GP": Method("none", wgan_gp, batch_norm=False, betas=(0.0, 0.9)),
    "LOGAN": Method("none", logan, uniform=True),
    "ADC-GAN": Method("class", adc_gan, classifier=True),
    "class-conditional": Method("class", gan),
    "self-conditioned": Method("cluster", gan),
    "instance-conditional": Method("instance", gan),
}
