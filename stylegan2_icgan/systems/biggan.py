"""The BigGAN family: hinge loss, several discriminator steps a generator step, a learning rate for each network.

Brock et al., arXiv 1809.11096. Its members are rows of the table of presets: SAGAN (arXiv 1805.08318) is --no-shared
--no-hier --init=xavier, BigGAN-deep is --deep, and IC-GAN on BigGAN (arXiv 2109.05070) is --cond=instance.
"""

from dataclasses import dataclass

import torch

from stylegan2_icgan.biggan_family import NetworkOptions, adams, check, derive, make_discriminator, make_generator
from training import loss
from training.config import option
from training.step import Term
from training.system import Phase, System, SystemKind


@dataclass(frozen=True)
class BigGANOptions(NetworkOptions):
    """Networks, loss and optimiser."""

    ortho_weight: float = option(0.0, "Weight of orthogonal regularisation; the paper's is 1e-4.", unit="X", low=0)


def build(o: BigGANOptions, networks: dict[str, torch.nn.Module]) -> System:
    d_terms: list[Term] = [loss.DHingeFake(), loss.d_hinge_real]
    g_terms: list[Term] = [loss.GHinge()]
    if o.ortho_weight > 0:
        d_terms.append(loss.OrthogonalRegularization("D", o.ortho_weight))
        g_terms.append(loss.OrthogonalRegularization("G", o.ortho_weight))
    phases = [Phase("D", trains="D", terms=d_terms), Phase("G", trains="G", terms=g_terms, interval=o.d_steps)]
    return System(networks, phases, adams(o, networks), average_buffers=True)


BIGGAN = SystemKind(
    options=BigGANOptions,
    networks={"G": make_generator, "D": make_discriminator},
    build=build,
    derive=derive,
    check=check,
)
