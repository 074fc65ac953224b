"""What the discriminator is shown of an image."""

from training.augment.controller import AdaController
from training.augment.diffaugment import DiffAugment
from training.augment.mirror import identity, random_mirror
from training.augment.pipe import SPECS, AugmentPipe

__all__ = ["SPECS", "AdaController", "AugmentPipe", "DiffAugment", "identity", "random_mirror"]
