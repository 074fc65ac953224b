"""The table of GAN systems."""

from stylegan2_icgan.systems.stylegan2 import STYLEGAN2
from training.system import SystemKind

SYSTEMS: dict[str, SystemKind] = {"stylegan2": STYLEGAN2}
