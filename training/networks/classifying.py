"""A discriminator that says of an image whether it is real, and of which class it is: AC-GAN and ADC-GAN."""

from typing import Any

from torch import Tensor

from training.networks import biggan
from training.networks.inputs import check_image, check_input
from training.networks.spectral_norm import SNLinear, initialise


class ClassifyingDiscriminator(biggan.Discriminator):
    """BigGAN's without the projection of the class, which a second head tells instead.

    Args:
        c_dim: number of classes K.
        outputs: logits for each class: 1, or 2 where real and fake images of a class are told apart.
        how: as of the discriminator of BigGAN.
    """

    def __init__(self, c_dim: int, outputs: int, init: str = "ortho", sn_eps: float = 1e-6, **how: Any) -> None:
        super().__init__(c_dim=0, init=init, sn_eps=sn_eps, **how)
        self.c_dim = c_dim  # what it is asked with; the logit does not depend on it
        self.classifier = SNLinear(self.linear.weight.shape[1], outputs * c_dim, eps=sn_eps)
        initialise(self.classifier, init)

    def both(self, img: Tensor, c: Tensor | None = None, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, and the logits of the classes, float32 [N, outputs * K]."""
        check_image(img, self.img_channels, self.img_resolution)
        check_input("c", c, self.c_dim, len(img))
        check_input("h", h, self.h_dim, len(img))
        x = self.features(img.float())  # [N, channels]
        return self.logits(x, c, h), self.classifier(x).float()
