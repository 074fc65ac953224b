"""Loss terms: each maps a `Step` to one value per sample. One equation, one name."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils import training_stats
from torch_utils.distributed import average
from torch_utils.misc import follow
from training.condition import Condition
from training.networks.spectral_norm import Embedding, SNEmbedding
from training.step import Step

Generate = Callable[[Step, torch.Tensor, Condition], torch.Tensor]  # (step, z, condition) -> fake images


class StyleMixing:
    """Fakes whose styles from a random layer on come from a second z (StyleGAN, arXiv 1812.04948, section 3.1).

    Args:
        prob: share of batches that are mixed.
        update_w_avg: let the mapping network follow its mean w (for the generator's main term; once a round).
    """

    def __init__(self, prob: float = 0.0, update_w_avg: bool = False) -> None:
        self.prob, self.update_w_avg = prob, update_w_avg

    def styles(self, step: Step, z: torch.Tensor, cond: Condition) -> torch.Tensor:
        """[N, num_ws, w_dim]"""
        ws: torch.Tensor = step.G.mapping(z, cond.c, cond.h, update_w_avg=self.update_w_avg)
        num_ws = ws.shape[1]
        if self.prob == 0 or num_ws == 1:
            return ws
        # Where to mix from is drawn on the device and nothing depends on it here, so that passes can be recorded.
        mixes, first = torch.rand((), device=z.device) < self.prob, torch.randint(1, num_ws, (), device=z.device)
        other = step.G.mapping(torch.randn_like(z), cond.c, cond.h)
        own = torch.arange(num_ws, device=z.device) < torch.where(mixes, first, num_ws)
        return torch.where(own[:, None], ws, other)

    def __call__(self, step: Step, z: torch.Tensor, cond: Condition) -> torch.Tensor:
        images: torch.Tensor = step.G.synthesis(self.styles(step, z, cond))
        return images


def _logits(step: Step, images: torch.Tensor, cond: Condition) -> torch.Tensor:
    """D's logits on what it is shown of the images, [N]."""
    logits: torch.Tensor = step.D(step.augment(images), cond.c, cond.h)
    return logits.squeeze(1)


def _shown_fakes(step: Step, generate: Generate) -> torch.Tensor:
    """Fakes to train D on: without a graph, unless z has one that leads back to D (training/latent.py)."""
    with torch.set_grad_enabled(step.z.requires_grad):
        return generate(step, step.z, step.gen_cond)


class GNonSaturating:
    """-log sigmoid D(G(z)) (Goodfellow et al., arXiv 1406.2661, section 3)."""

    def __init__(self, generate: Generate) -> None:
        self.generate = generate

    def __call__(self, step: Step) -> torch.Tensor:
        logits = _logits(step, self.generate(step, step.z, step.gen_cond), step.gen_cond)
        loss = F.softplus(-logits)
        training_stats.report("Loss/G/loss", loss)
        training_stats.report("Loss/scores/fake", logits)
        training_stats.report("Loss/signs/fake", logits.sign())
        return loss


class DLogisticFake:
    """-log(1 - sigmoid D(G(z))) (arXiv 1406.2661, eq. 1, second term)."""

    def __init__(self, generate: Generate) -> None:
        self.generate = generate

    def __call__(self, step: Step) -> torch.Tensor:
        images = _shown_fakes(step, self.generate)
        loss = F.softplus(_logits(step, images, step.gen_cond))
        training_stats.report("Loss/D/fake", loss)
        return loss


def d_logistic_real(step: Step) -> torch.Tensor:
    """-log sigmoid D(x) (arXiv 1406.2661, eq. 1, first term)."""
    logits = _logits(step, step.real, step.real_cond)
    step.observe(logits)
    loss = F.softplus(-logits)
    training_stats.report("Loss/D/real", loss)
    training_stats.report("Loss/scores/real", logits)
    training_stats.report("Loss/signs/real", logits.sign())
    return loss


class R1:
    """gamma / 2 * |grad_x D(x)|^2 on real images (Mescheder et al., arXiv 1801.04406, eq. 9)."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, step: Step) -> torch.Tensor:
        real = step.real.detach().requires_grad_(True)
        logits = _logits(step, real, step.real_cond)
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        penalty = gradient.square().sum(dim=[1, 2, 3])
        training_stats.report("Loss/r1_penalty", penalty)
        return penalty * (self.gamma / 2)


class PathLength:
    """(|J_w^T y| - a)^2 with y ~ N(0, 1) and a the running mean of path lengths (StyleGAN2, arXiv 1912.04958, eq. 4).

    Args:
        generate: gives the styles.
        weight: factor of the penalty.
        decay: how fast `a` follows.
        batch_shrink: use the first N / batch_shrink rows, to save memory.
    """

    def __init__(self, generate: StyleMixing, weight: float, decay: float = 0.01, batch_shrink: int = 2) -> None:
        self.generate, self.weight, self.decay, self.batch_shrink = generate, weight, decay, batch_shrink
        self.mean = torch.zeros(())
        self._of_rounds: list[torch.Tensor] = []  # mean length of each round since `settle`

    def __call__(self, step: Step) -> torch.Tensor:
        rows = max(len(step.z) // self.batch_shrink, 1)
        ws = self.generate.styles(step, step.z[:rows], step.gen_cond[:rows])
        images = step.G.synthesis(ws)
        lengths = path_lengths(images, ws, torch.randn_like(images))
        length = lengths.detach().mean()
        step.tell(self._of_rounds.append, length)
        self.mean = self.mean.to(lengths.device)
        penalty = (lengths - self.mean.lerp(length, self.decay)).square()
        training_stats.report("Loss/pl_penalty", penalty)
        return penalty * self.weight

    def settle(self, network: torch.nn.Module) -> None:
        """Move the mean, once a step, by the lengths of all rounds in all processes, if they are finite."""
        mean = torch.stack(self._of_rounds).mean()
        self._of_rounds.clear()
        average([mean])
        follow(self.mean, self.mean.lerp(mean, self.decay))
        training_stats.report("Loss/pl_mean", self.mean)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"].clone()


def path_lengths(images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """|J_w^T y| per sample: root of the mean over layers of the squared gradient norm (arXiv 1912.04958, eq. 4).

    Args:
        images: [N, C, H, W], made from ws with a graph.
        ws: [N, num_ws, w_dim].
        noise: y before scaling, [N, C, H, W] ~ N(0, 1); divided by sqrt(H * W) here, so that lengths do not depend on
            the resolution.

    Returns:
        [N]
    """
    y = noise / (images.shape[2] * images.shape[3]) ** 0.5
    (gradient,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    lengths: torch.Tensor = gradient.square().sum(dim=2).mean(dim=1).sqrt()
    return lengths


def generated(step: Step, z: torch.Tensor, cond: Condition) -> torch.Tensor:
    """Fakes of a generator without styles."""
    images: torch.Tensor = step.G(z, cond.c, cond.h)
    return images


def d_hinge_real(step: Step) -> torch.Tensor:
    """max(0, 1 - D(x)) (Lim and Ye, arXiv 1705.02894; SAGAN, arXiv 1805.08318, eq. 4, first term)."""
    logits = _logits(step, step.real, step.real_cond)
    step.observe(logits)
    loss = F.relu(1 - logits)
    training_stats.report("Loss/D/real", loss)
    training_stats.report("Loss/scores/real", logits)
    training_stats.report("Loss/signs/real", logits.sign())
    return loss


class DHingeFake:
    """max(0, 1 + D(G(z))) (arXiv 1805.08318, eq. 4, second term)."""

    def __init__(self, generate: Generate = generated) -> None:
        self.generate = generate

    def __call__(self, step: Step) -> torch.Tensor:
        images = _shown_fakes(step, self.generate)
        loss = F.relu(1 + _logits(step, images, step.gen_cond))
        training_stats.report("Loss/D/fake", loss)
        return loss


class GHinge:
    """-D(G(z)) (arXiv 1805.08318, eq. 4, the generator's)."""

    def __init__(self, generate: Generate = generated) -> None:
        self.generate = generate

    def __call__(self, step: Step) -> torch.Tensor:
        logits = _logits(step, self.generate(step, step.z, step.gen_cond), step.gen_cond)
        training_stats.report("Loss/G/loss", -logits)
        training_stats.report("Loss/scores/fake", logits)
        training_stats.report("Loss/signs/fake", logits.sign())
        return -logits


class OrthogonalRegularization:
    """beta / 2 * |W W^T * (1 - I)|^2 over the weights of a network (BigGAN, arXiv 1809.11096, eq. 3).

    The factor 1/2 makes the gradient 2 beta (W W^T * (1 - I)) W, that of the published code, to which published values
    of beta refer. W has a row for each output; vectors and tables of labels are left alone.

    Args:
        network: its name in the step.
        weight: beta; the paper's is 1e-4.
    """

    def __init__(self, network: str, weight: float) -> None:
        self.network, self.weight = network, weight

    def __call__(self, step: Step) -> torch.Tensor:
        penalty = torch.zeros(1, device=step.z.device)
        for module in step.networks[self.network].modules():
            if isinstance(module, Embedding | SNEmbedding):
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.ndim >= 2:
                    rows = parameter.flatten(1)
                    gram = rows @ rows.t()
                    penalty = penalty + (gram - gram.diag().diag()).square().sum()
        training_stats.report(f"Loss/{self.network}/ortho", penalty)
        return penalty * (self.weight / 2)
