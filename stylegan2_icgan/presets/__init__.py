"""The table of presets: a row of values for `--cfg`, each value with its reason. Flags override them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stylegan2_icgan.presets import biggan, csgan, residual, selfcond, stylegan2, wgan
from training.system import Derived


@dataclass(frozen=True)
class Preset:
    """
    Args:
        system: of the table of systems.
        values: resolution -> values of options.
        resolution: the only one it is for; None: any that the networks can do.
        derive: (batch, batch_gpu) -> values that follow from the batch, whatever a flag has made of it.
    """

    system: str
    values: Callable[[int], dict[str, Any]]
    resolution: int | None = None
    derive: Callable[[int, int], Derived] = lambda batch, batch_gpu: {}


PRESETS: dict[str, Preset] = {
    "auto": Preset("stylegan2", stylegan2.auto, derive=stylegan2.average),
    "tiny": Preset("stylegan2", stylegan2.tiny),
    "stylegan2": Preset("stylegan2", stylegan2.stylegan2),
    "paper256": Preset("stylegan2", stylegan2.paper256),
    "paper512": Preset("stylegan2", stylegan2.paper512),
    "paper1024": Preset("stylegan2", stylegan2.paper1024),
    "cifar": Preset("stylegan2", stylegan2.cifar, derive=stylegan2.cifar_group),
    "icgan-coco128": Preset("stylegan2", stylegan2.icgan_coco, 128, stylegan2.average),
    "icgan-coco256": Preset("stylegan2", stylegan2.icgan_coco, 256, stylegan2.average),
    "biggan": Preset("biggan", biggan.biggan),
    "biggan-tiny": Preset("biggan", biggan.biggan_tiny),
    "biggan-deep-tiny": Preset("biggan", biggan.biggan_deep_tiny),
    "sagan-tiny": Preset("biggan", biggan.sagan_tiny),
    "sagan128": Preset("biggan", biggan.sagan, 128),
    "biggan32": Preset("biggan", biggan.biggan32, 32),
    **{f"biggan{res}": Preset("biggan", biggan.biggan_large, res) for res in (64, 128, 256)},
    **{f"biggan-deep{res}": Preset("biggan", biggan.biggan_deep, res) for res in (128, 256)},
    **{f"icgan-biggan-{res}": Preset("biggan", biggan.icgan, res) for res in (64, 128, 256)},
    "icgan-biggan-256half": Preset("biggan", biggan.icgan_half, 256),
    **{f"biggan-lt{res}": Preset("biggan", biggan.imagenet_lt, res) for res in (64, 128, 256)},
    **{f"icgan-biggan-coco{res}": Preset("biggan", biggan.icgan_coco, res) for res in (128, 256)},
    **{f"biggan-coco{res}": Preset("biggan", biggan.biggan_coco, res) for res in (128, 256)},
    "wgan": Preset("wgan", wgan.wgan),
    "wgan-gp": Preset("wgan", wgan.wgan_gp),
    "wgan-tiny": Preset("wgan", wgan.wgan_tiny),
    "logan": Preset("logan", residual.logan, 128),
    "logan-tiny": Preset("logan", residual.logan_tiny),
    "unet128": Preset("unet", residual.unet128, 128),
    "unet256": Preset("unet", residual.unet256, 256),
    "unet-tiny": Preset("unet", residual.unet_tiny),
    "adc-cifar": Preset("adc", residual.adc_cifar, 32),
    "adc-tiny": Preset("adc", residual.adc_tiny),
    "csgan": Preset("csgan", csgan.csgan),
    "csgan-tiny": Preset("csgan", csgan.csgan_tiny),
    "selfcond": Preset("selfcond", selfcond.selfcond),
    "selfcond-tiny": Preset("selfcond", selfcond.selfcond_tiny),
}
