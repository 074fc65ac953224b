"""What the discriminator is shown of an image."""

from training.augment.augmentation import Augmentation, AugmentOptions, check_augment
from training.augment.controller import AdaController
from training.augment.diffaugment import DiffAugment
from training.augment.mirror import identity, random_mirror
from training.augment.pipe import SPECS, AugmentPipe

__all__ = [
    "SPECS",
    "AdaController",
    "AugmentOptions",
    "AugmentPipe",
    "Augmentation",
    "DiffAugment",
    "check_augment",
    "identity",
    "random_mirror",
]
