"""ADC-GAN: beside the logit, a classifier tells real from fake images of each class. Hou et al., arXiv 2107.10060.

--classifier=ac is AC-GAN (Odena et al., arXiv 1610.09585), which it improves on. Networks and hinge loss are BigGAN's,
without the projection of the class.
"""

from dataclasses import dataclass

import torch

from stylegan2_icgan.biggan_family import NetworkOptions, adams, check, derive, make_generator, resolutions
from training.classifier_loss import CLASSIFIERS, DClassifiedFake, DClassifiedReal, GClassified
from training.config import option
from training.networks.classifying import ClassifyingDiscriminator
from training.system import DataShape, Phase, System, SystemKind


@dataclass(frozen=True)
class ADCOptions(NetworkOptions):
    """Networks, loss and optimiser."""

    classifier: str = option(
        "adc",
        "adc: tells real from fake images of each class (ADC-GAN); ac: tells classes apart (AC-GAN).",
        choices=tuple(CLASSIFIERS),
    )
    g_class_weight: float = option(1.0, "Weight of the classifier in the generator's loss.", unit="X", low=0)
    d_class_weight: float = option(1.0, "Weight of the classifier in the discriminator's loss.", unit="X", low=0)


def make_discriminator(o: ADCOptions, shape: DataShape) -> torch.nn.Module:
    return ClassifyingDiscriminator(
        **vars(shape),
        outputs=CLASSIFIERS[o.classifier].outputs,
        ch=o.ch,
        deep=o.deep,
        attention=resolutions(o.attention),
        init=o.init,
        sn_eps=o.sn_eps,
    )


def build(o: ADCOptions, networks: dict[str, torch.nn.Module]) -> System:
    classifier = CLASSIFIERS[o.classifier]
    d_terms = [DClassifiedFake(classifier, o.d_class_weight), DClassifiedReal(classifier, o.d_class_weight)]
    phases = [
        Phase("D", trains="D", terms=d_terms),
        Phase("G", trains="G", terms=[GClassified(classifier, o.g_class_weight)], interval=o.d_steps),
    ]
    return System(networks, phases, adams(o, networks), average_buffers=True)


ADC = SystemKind(
    options=ADCOptions,
    networks={"G": make_generator, "D": make_discriminator},
    build=build,
    derive=derive,
    check=check,
    conditions=lambda o: ("class", "instance+class", "cluster"),
)
