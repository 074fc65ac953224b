"""Wasserstein GANs: the terms of the critic and the generator, and two ways to keep the critic Lipschitz.

Clipping: Arjovsky et al., arXiv 1701.07875. Gradient penalty: Gulrajani et al., arXiv 1704.00028.
"""

import torch

from torch_utils import training_stats
from training.loss import Generate, generated
from training.networks.conditional_norm import standing_still
from training.step import Step


class Critic:
    """D(G(z)) - D(x): minus the estimate of the Wasserstein distance (arXiv 1701.07875, eq. 2 and algorithm 1).

    The estimate is reported as Loss/wasserstein, up to the Lipschitz constant of the critic. It falls as the fakes get
    better, which makes it a curve worth watching.
    """

    def __init__(self, generate: Generate = generated) -> None:
        self.generate = generate

    def __call__(self, step: Step) -> torch.Tensor:
        with torch.no_grad():
            fake = self.generate(step, step.z, step.gen_cond)
        on_fake = step.D(step.augment(fake), step.gen_cond.c, step.gen_cond.h).squeeze(1)
        on_real = step.D(step.augment(step.real), step.real_cond.c, step.real_cond.h).squeeze(1)
        step.observe(on_real)
        loss: torch.Tensor = on_fake - on_real
        training_stats.report("Loss/wasserstein", -loss)
        training_stats.report("Loss/D/fake", on_fake)
        training_stats.report("Loss/D/real", -on_real)
        training_stats.report("Loss/scores/fake", on_fake)
        training_stats.report("Loss/scores/real", on_real)
        return loss


class GWasserstein:
    """-D(G(z)) (arXiv 1701.07875, algorithm 1, line 10)."""

    def __init__(self, generate: Generate = generated) -> None:
        self.generate = generate

    def __call__(self, step: Step) -> torch.Tensor:
        fake = self.generate(step, step.z, step.gen_cond)
        loss: torch.Tensor = -step.D(step.augment(fake), step.gen_cond.c, step.gen_cond.h).squeeze(1)
        training_stats.report("Loss/G/loss", loss)
        return loss


class GradientPenalty:
    """weight * (|grad D(y)| - 1)^2 at a random point y between x and G(z) (arXiv 1704.00028, eq. 3, second term)."""

    def __init__(self, weight: float, generate: Generate = generated) -> None:
        self.weight, self.generate = weight, generate

    def __call__(self, step: Step) -> torch.Tensor:
        with torch.no_grad(), standing_still(step.G):  # the fakes of `Critic` again
            fake = self.generate(step, step.z, step.gen_cond)
        real, fake = step.augment(step.real), step.augment(fake)
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = (share * real + (1 - share) * fake).requires_grad_(True)
        logits = step.D(between, step.real_cond.c, step.real_cond.h)
        (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
        norm = gradient.square().sum(dim=[1, 2, 3]).add(1e-12).sqrt()  # at 0 a root has no gradient
        training_stats.report("Loss/D/gradient_norm", norm)
        penalty: torch.Tensor = self.weight * (norm - 1).square()
        return penalty


@torch.no_grad()
def clip_weights(network: torch.nn.Module, limit: float) -> None:
    """Clip every parameter that is trained to [-limit, limit] (arXiv 1701.07875, algorithm 1, line 7).

    While a network's phase runs, all its parameters require gradients but those that --freeze-d leaves as they are.
    """
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.clamp_(-limit, limit)
