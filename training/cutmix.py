"""CutMix of real and fake images, for a discriminator that judges every pixel.

Yun et al., arXiv 1905.04899; in U-Net GAN: Schönfeld et al., arXiv 2002.12655, section 3.2.
"""

import torch
import torch.nn.functional as F

from torch_utils import training_stats
from training.loss import Generate, generated
from training.step import Step


def cutmix_masks(num: int, resolution: int, device: torch.device) -> torch.Tensor:
    """float32 [num, 1, resolution, resolution]: 1 where the real image shows, 0 where the fake does.

    A square of sqrt(1 - lambda) of the side, lambda ~ U(0, 1), its centre anywhere, is cut out of the one or, half the
    time, the other (arXiv 1905.04899, eq. 2).
    """
    share, x, y, which = torch.rand(4, num, 1, device=device)  # [num, 1] each
    half = (1 - share).sqrt() * resolution / 2
    pixels = torch.arange(resolution, device=device) + 0.5
    inside_x, inside_y = ((pixels - centre * resolution).abs() < half for centre in (x, y))  # [num, resolution]
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    return (inside == (which < 0.5)[:, :, None]).float()[:, None]


class CutMix:
    """D on mixed images: as a whole they are fake, each pixel is what it came from, and the map of a mixture should be
    the mixture of the maps (arXiv 2002.12655, section 3.2).

    The fakes have the condition of the real images they are mixed with. What is mixed is what D is shown of both.

    Args:
        consistency: weight of the last of the three, a mean of squares over the pixels' logits.
        generate: gives the fakes.
    """

    def __init__(self, consistency: float, generate: Generate = generated) -> None:
        self.consistency, self.generate = consistency, generate

    def __call__(self, step: Step) -> torch.Tensor:
        cond = step.real_cond
        with torch.no_grad():
            fake = step.augment(self.generate(step, step.z, cond))
            real = step.augment(step.real)
            mask = cutmix_masks(len(real), real.shape[2], real.device)
        logits, pixels = step.D.both(torch.lerp(fake, real, mask), cond.c, cond.h)
        _, of_real = step.D.both(real, cond.c, cond.h)
        _, of_fake = step.D.both(fake, cond.c, cond.h)

        whole = F.softplus(logits.squeeze(1))
        each = F.binary_cross_entropy_with_logits(pixels, mask, reduction="none").mean(dim=[1, 2, 3])
        inconsistency = (pixels - torch.lerp(of_fake, of_real, mask)).square().mean(dim=[1, 2, 3])
        training_stats.report("Loss/D/cutmix", whole + each)
        training_stats.report("Loss/D/inconsistency", inconsistency)
        return whole + each + self.consistency * inconsistency
