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
            fake = step.augment(self.generate(step, step.z, cond)).float()
            real = step.augment(step.real).float()
            mask = cutmix_masks(len(real), real.shape[2], real.device)
        logits, pixels = _judged(step, torch.lerp(fake, real, mask))
        _, of_real = _judged(step, real)
        _, of_fake = _judged(step, fake)

        whole = F.softplus(logits)
        each = F.binary_cross_entropy_with_logits(pixels, mask, reduction="none").mean(dim=[1, 2, 3])
        inconsistency = (pixels - torch.lerp(of_fake, of_real, mask)).square().mean(dim=[1, 2, 3])
        training_stats.report("Loss/D/cutmix", whole + each)
        training_stats.report("Loss/D/inconsistency", inconsistency)
        return whole + each + self.consistency * inconsistency


def _judged(step: Step, shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """D's logits on images with the condition of the real ones, float32 [N], and on their pixels, [N, 1, H, W].

    What networks give in 16 bits can't be mixed by a float32 mask.
    """
    logits, pixels = step.D.both(shown, step.real_cond.c, step.real_cond.h)
    return logits.squeeze(1).float(), pixels.float()
