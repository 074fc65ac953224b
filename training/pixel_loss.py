"""Terms for a discriminator with a logit for the image and one for every pixel: U-Net GAN (arXiv 2002.12655).

Both heads have the non-saturating loss and equal weights (section 3.1); D has a method `both` that gives the two.
"""

import torch
import torch.nn.functional as F

from torch_utils import training_stats
from training.condition import Condition
from training.loss import Generate, generated
from training.step import Step


def _both(step: Step, images: torch.Tensor, cond: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """D's logits on what it is shown of the images: [N], and of the pixels, [N, H W]."""
    logits, pixels = step.D.both(step.augment(images), cond.c, cond.h)
    return logits.squeeze(1), pixels.flatten(1)


def d_pixels_real(step: Step) -> torch.Tensor:
    """-(log sigmoid enc(x) + mean over pixels of log sigmoid dec(x)) / 2."""
    logits, pixels = _both(step, step.real, step.real_cond)
    step.observe(logits)
    loss = (F.softplus(-logits) + F.softplus(-pixels).mean(dim=1)) / 2
    training_stats.report("Loss/D/real", loss)
    training_stats.report("Loss/scores/real", logits)
    training_stats.report("Loss/signs/real", logits.sign())
    training_stats.report("Loss/signs/real_pixels", pixels.sign())
    return loss


class DPixelsFake:
    """-(log(1 - sigmoid enc(G(z))) + mean over pixels of log(1 - sigmoid dec(G(z)))) / 2."""

    def __init__(self, generate: Generate = generated) -> None:
        self.generate = generate

    def __call__(self, step: Step) -> torch.Tensor:
        with torch.no_grad():
            images = self.generate(step, step.z, step.gen_cond)
        logits, pixels = _both(step, images, step.gen_cond)
        loss = (F.softplus(logits) + F.softplus(pixels).mean(dim=1)) / 2
        training_stats.report("Loss/D/fake", loss)
        return loss


class GPixels:
    """-(log sigmoid enc(G(z)) + mean over pixels of log sigmoid dec(G(z))) / 2."""

    def __init__(self, generate: Generate = generated) -> None:
        self.generate = generate

    def __call__(self, step: Step) -> torch.Tensor:
        logits, pixels = _both(step, self.generate(step, step.z, step.gen_cond), step.gen_cond)
        loss = (F.softplus(-logits) + F.softplus(-pixels).mean(dim=1)) / 2
        training_stats.report("Loss/G/loss", loss)
        training_stats.report("Loss/scores/fake", logits)
        training_stats.report("Loss/signs/fake", logits.sign())
        training_stats.report("Loss/signs/fake_pixels", pixels.sign())
        return loss
