"""LOGAN: the noise of a fake is moved towards what the discriminator likes before anything is learned from it.

Wu et al., LOGAN: Latent Optimisation for Generative Adversarial Networks, arXiv 1912.00953.
"""

from dataclasses import dataclass, replace

import torch

from torch_utils import training_stats
from training.networks.conditional_norm import standing_still
from training.step import Step, Term


@dataclass(frozen=True)
class LatentOptimisation:
    """How u in [-1, 1] is moved, and what that costs.

    Args:
        natural: by natural gradient, else by the plain one.
        rate: alpha.
        damping: beta of the natural gradient.
        share: c, of the elements of u that are moved; drawn for each sample.
        steps: one after the other, each from where the one before ended.
        cost: w_r, weight of the transport cost.
    """

    natural: bool = True
    rate: float = 0.9
    damping: float = 5.0
    share: float = 0.5
    steps: int = 1
    cost: float = 300.0

    def move(self, gradient: torch.Tensor) -> torch.Tensor:
        """Delta z of a gradient g, both [N, z_dim], each row for itself.

        alpha g, or the natural gradient alpha F'^-1 g with F' = g g^T + beta I, the damped empirical Fisher matrix:
        alpha g / (beta + |g|^2) by the Sherman-Morrison formula. Long gradients make shorter steps.
        """
        if not self.natural:
            return self.rate * gradient
        return self.rate * gradient / (self.damping + gradient.square().sum(dim=1, keepdim=True))

    def __call__(self, step: Step, u: torch.Tensor) -> torch.Tensor:
        """u, [N, z_dim], moved up D(G(u)); with a graph through the gradient.

        The elements that stay have no part in g or F', as if there were only the others. Statistics of batches follow
        the first pass, at the u that was drawn: that is what images are sampled from later.
        """
        moved = u.detach().requires_grad_(True)
        chosen = (torch.rand_like(u) < self.share).to(u.dtype)
        for number in range(self.steps):
            with standing_still(*(step.networks.values() if number else ())):
                images = step.G(moved, step.gen_cond.c, step.gen_cond.h)
                scores = step.D(step.augment(images), step.gen_cond.c, step.gen_cond.h)
            (gradient,) = torch.autograd.grad(scores.sum(), moved, create_graph=True)
            moved = (moved + self.move(gradient * chosen)).clamp(-1, 1)
        return moved


class Optimised:
    """A term on fakes of u' in place of u, plus the transport cost w_r |u' - u|^2.

    For a generator behind `UniformPrior`. Both networks learn through the step from u to u', too: the term must keep
    the graph of a `step.z` that has one.
    """

    def __init__(self, term: Term, latent: LatentOptimisation) -> None:
        self.term, self.latent = term, latent

    def __call__(self, step: Step) -> torch.Tensor:
        inner = replace(step, networks={**step.networks, "G": step.G.generator})  # takes u
        u = step.G.latent(step.z)
        moved = self.latent(inner, u)
        distance = (moved - u).square().sum(dim=1)
        training_stats.report("Loss/latent_distance", distance)
        with standing_still(*step.networks.values()):
            loss = self.term(replace(inner, z=moved))
        return loss + self.latent.cost * distance
