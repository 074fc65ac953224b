"""Loss terms of image translation between two domains, A and B, trained on pairs.

CycleGAN (arXiv 1703.10593) and CSGAN, "Cyclic-Synthesized GAN" (arXiv 1901.03554). `step.real` is a pair on the channel
axis, [N, 2 C, H, W]: A first. The generators are `step.G.AB` and `step.G.BA`, the discriminators `step.D["A"]` and
`step.D["B"]`. Every equation gives one value per pair, [N].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torch_utils import training_stats
from training.fake_pool import FakePool
from training.step import Step

REAL, FAKE = 1.0, 0.0  # what a discriminator is to answer


class Pairs(NamedTuple):
    """A batch of pairs and all that the generators make of it, [N, C, H, W] each."""

    real_a: Tensor
    real_b: Tensor
    fake_a: Tensor  # BA(real_b), "Syn_A" in CSGAN
    fake_b: Tensor  # AB(real_a)
    cycled_a: Tensor  # BA(AB(real_a)), "Cyc_A"
    cycled_b: Tensor  # AB(BA(real_b))


def translated(step: Step) -> Pairs:
    real_a, real_b = step.real.chunk(2, dim=1)
    fake_a, fake_b = step.G.BA(real_b), step.G.AB(real_a)
    return Pairs(real_a, real_b, fake_a, fake_b, cycled_a=step.G.BA(fake_b), cycled_b=step.G.AB(fake_a))


def least_squares(logits: Tensor, target: float) -> Tensor:
    """(D(x) - target)^2, the mean over the patches (LSGAN, arXiv 1611.04076, eq. 9; CycleGAN, section 4)."""
    return (logits - target).square().mean(dim=[1, 2, 3])


def cycle_consistency(pairs: Pairs) -> Tensor:
    """|BA(AB(a)) - a| + |AB(BA(b)) - b| (CycleGAN, eq. 2)."""
    return _l1(pairs.cycled_a, pairs.real_a) + _l1(pairs.cycled_b, pairs.real_b)


def cyclic_synthesis(pairs: Pairs) -> Tensor:
    """|Syn_A - Cyc_A| + |Syn_B - Cyc_B| (CSGAN, the cyclic-synthesized loss), of pairs only.

    As in the authors' code the cycled image is a target, not a variable: the gradient reaches only the generator that
    made the synthesised one.
    """
    return _l1(pairs.fake_a, pairs.cycled_a.detach()) + _l1(pairs.fake_b, pairs.cycled_b.detach())


def identity_mapping(step: Step, pairs: Pairs) -> Tensor:
    """|BA(a) - a| + |AB(b) - b|: what is of the target domain already stays as it is (CycleGAN, section 5.2)."""
    return _l1(step.G.BA(pairs.real_a), pairs.real_a) + _l1(step.G.AB(pairs.real_b), pairs.real_b)


def _l1(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs().mean(dim=[1, 2, 3])


class GTranslation:
    """What both generators are trained on: adversarial terms, and the weighted sum of the three above.

    One term, because all of it is said of the same four images.
    """

    def __init__(self, cycle_weight: float, cs_weight: float, identity_weight: float) -> None:
        self.cycle_weight, self.cs_weight, self.identity_weight = cycle_weight, cs_weight, identity_weight

    def __call__(self, step: Step) -> Tensor:
        pairs = translated(step)
        logits = step.D["A"](step.augment(pairs.fake_a)), step.D["B"](step.augment(pairs.fake_b))
        adversarial = least_squares(logits[0], REAL) + least_squares(logits[1], REAL)
        cycle, synthesis = cycle_consistency(pairs), cyclic_synthesis(pairs)
        loss = adversarial + self.cycle_weight * cycle + self.cs_weight * synthesis
        if self.identity_weight > 0:
            identity = identity_mapping(step, pairs)
            training_stats.report("Loss/G/identity", identity)
            loss = loss + self.identity_weight * identity
        training_stats.report("Loss/G/adversarial", adversarial)
        training_stats.report("Loss/G/cycle", cycle)
        training_stats.report("Loss/G/cyclic_synthesis", synthesis)
        training_stats.report("Loss/G/loss", loss)
        for of_domain in logits:
            training_stats.report("Loss/scores/fake", of_domain)
        return loss


class DTranslationReal:
    """(D(x) - 1)^2 / 2 on the real images of a domain (CycleGAN, section 4 and appendix 7.1)."""

    def __init__(self, domain: str) -> None:
        self.domain = domain

    def __call__(self, step: Step) -> Tensor:
        real = step.real.chunk(2, dim=1)["AB".index(self.domain)]
        logits = step.D[self.domain](step.augment(real))
        step.observe(logits.mean(dim=[1, 2, 3]) - (REAL + FAKE) / 2)  # the sign that ADA counts: real or fake
        loss = least_squares(logits, REAL) / 2
        training_stats.report("Loss/D/real", loss)
        training_stats.report("Loss/scores/real", logits)
        return loss


class DTranslationFake:
    """D(G(y))^2 / 2 on fakes of a domain, some of them of earlier steps (CycleGAN, section 4 and appendix 7.1)."""

    def __init__(self, domain: str, pool: FakePool) -> None:
        self.domain, self.pool = domain, pool

    def __call__(self, step: Step) -> Tensor:
        real_a, real_b = step.real.chunk(2, dim=1)
        with torch.no_grad():
            fakes = step.G.BA(real_b) if self.domain == "A" else step.G.AB(real_a)
        logits = step.D[self.domain](step.augment(self.pool.exchange(fakes, step.key)))
        loss = least_squares(logits, FAKE) / 2
        training_stats.report("Loss/D/fake", loss)
        return loss
