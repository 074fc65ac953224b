"""What presets say is what was published: values written down here once more, by the tables they come from."""

from typing import Any

import pytest

from stylegan2_icgan.options import resolve
from stylegan2_icgan.presets import PRESETS

# StyleGAN2-ADA, arXiv 2006.06676, appendix C: hyper-parameters of all runs; equal rates of G and D.
STYLEGAN2_COLUMNS = ("batch", "mbstd_group", "channel_base", "lr", "gamma", "ema_kimg", "ema_rampup", "map_layers")
STYLEGAN2_ROWS: dict[str, tuple[float, ...]] = {
    "stylegan2": (32, 4, 32768, 0.002, 10, 10, 0, 8),
    "paper256": (64, 8, 16384, 0.0025, 1, 20, 0, 8),
    "paper512": (64, 8, 32768, 0.0025, 0.5, 20, 0, 8),
    "paper1024": (32, 4, 32768, 0.002, 2, 10, 0, 8),
    "cifar": (64, 32, 32768, 0.0025, 0.01, 500, 0.05, 2),
}
STYLEGAN2_ALL: dict[str, Any] = {
    "kimg": 25_000,
    "z_dim": 512,
    "w_dim": 512,
    "channel_max": 512,
    "map_lr": 0.01,
    "g_architecture": "skip",
    "d_architecture": "resnet",
    "r1_interval": 16,
    "pl_weight": 2,
    "pl_interval": 4,
    "style_mixing": 0.9,
    "aug": "ada",
    "augpipe": "bgc",
    "target": 0.6,
    "ada_kimg": 500,
    "mirror": False,
    "num_fp16_res": 4,
    "low_dtype": "fp16",
    "conv_clamp": 256,
    "k": 50,  # IC-GAN on ImageNet
}
STYLEGAN2_BUT: dict[str, dict[str, Any]] = {
    "stylegan2": {"aug": "noaug"},
    "cifar": {"kimg": 100_000, "d_architecture": "orig", "pl_weight": 0, "style_mixing": 0},
}
RESOLUTIONS = {"stylegan2": 1024, "paper256": 256, "paper512": 512, "paper1024": 1024, "cifar": 32}

# IC-GAN, arXiv 2109.05070, appendix B, and what its authors' configurations of BigGAN add.
BIGGAN_COLUMNS = ("batch", "ch", "attention", "g_lr", "d_lr", "d_steps", "mirror", "mirror_instances", "k", "aug")
BIGGAN_ROWS: dict[str, tuple[Any, ...]] = {
    "icgan-biggan-64": (256, 64, "32", 1e-4, 1e-4, 1, True, True, 50, "noaug"),
    "icgan-biggan-128": (2048, 96, "64", 4e-5, 1e-4, 1, True, True, 50, "noaug"),
    "icgan-biggan-256": (2048, 96, "64", 4e-5, 1e-4, 1, True, False, 50, "noaug"),
    "icgan-biggan-256half": (2048, 64, "64", 1e-4, 1e-4, 2, True, True, 50, "noaug"),
    "biggan64": (256, 64, "32", 1e-4, 1e-4, 1, True, False, 50, "noaug"),
    "biggan128": (2048, 96, "64", 1e-4, 4e-4, 1, True, False, 50, "noaug"),
    "biggan256": (2048, 64, "64", 1e-4, 4e-4, 1, False, False, 50, "noaug"),
    "biggan-lt64": (128, 64, "32", 1e-5, 1e-3, 1, True, False, 5, "diffaug"),
    "biggan-lt128": (128, 64, "64", 1e-4, 1e-4, 2, True, False, 5, "diffaug"),
    "biggan-lt256": (128, 64, "64", 1e-4, 1e-4, 2, True, False, 5, "diffaug"),
    "icgan-biggan-coco128": (256, 48, "64", 1e-4, 4e-4, 1, True, True, 5, "diffaug"),
    "icgan-biggan-coco256": (256, 48, "64", 1e-4, 1e-4, 1, True, True, 5, "diffaug"),
    "biggan-coco128": (256, 48, "64", 1e-4, 4e-4, 2, True, False, 5, "diffaug"),
    "biggan-coco256": (256, 48, "64", 1e-4, 1e-4, 2, True, False, 5, "diffaug"),
}
BIGGAN_ALL: dict[str, Any] = {
    "z_dim": 120,
    "shared": True,
    "hier": True,
    "shared_dim": 128,
    "shared_dim_feat": 512,
    "deep": False,
    "init": "ortho",
    "sn_eps": 1e-6,
    "adam_eps": 1e-6,
}

BIGGAN_DEEP: dict[str, Any] = {"batch": 2048, "deep": True, "z_dim": 128, "ch": 128, "attention": "64"}
BIGGAN_DEEP |= {"hier": True, "shared": True, "shared_dim": 128, "g_lr": 5e-5, "d_lr": 2e-4, "d_steps": 2}
CIFAR: dict[str, Any] = {"batch": 50, "z_dim": 128, "ch": 64, "attention": "0", "shared": False, "hier": False}
CIFAR |= {"init": "normal", "g_lr": 2e-4, "d_lr": 2e-4, "d_steps": 4}
U_NET: dict[str, Any] = {"z_dim": 128, "ch": 64, "init": "ortho", "d_steps": 1, "cutmix": 0.5, "consistency": 1}
OTHERS: dict[str, dict[str, Any]] = {
    # arXiv 1809.11096, appendices B and C
    "biggan-deep128": BIGGAN_DEEP,
    "biggan-deep256": BIGGAN_DEEP,
    # its authors' PyTorch code, for CIFAR
    "biggan32": CIFAR | {"kimg": 25_000},
    # arXiv 2107.10060: CIFAR's BigGAN, twice as long
    "adc-cifar": CIFAR | {"kimg": 50_000, "g_class_weight": 1, "d_class_weight": 1, "classifier": "adc"},
    # arXiv 1805.08318, section 4, and its authors' code
    "sagan128": {"batch": 256, "z_dim": 128, "ch": 64, "attention": "32", "shared": False, "hier": False}
    | {"init": "xavier", "bn_momentum": 0.001, "g_lr": 1e-4, "d_lr": 4e-4, "d_steps": 1},
    # arXiv 1912.00953
    "logan": BIGGAN_DEEP
    | {"z_dim": 256, "slope": 0.2, "latent_method": "natural", "latent_steps": 1, "latent_rate": 0.9}
    | {"latent_damping": 5, "latent_share": 0.5, "latent_cost": 300},
    # arXiv 2002.12655, appendix
    "unet128": U_NET | {"batch": 80, "g_lr": 5e-5, "d_lr": 2e-4, "cutmix_warmup": 200 * 38_000 // 80},
    "unet256": U_NET | {"batch": 20, "g_lr": 1e-4, "d_lr": 5e-4, "cutmix_warmup": 100 * 70_000 // 20},
    # arXiv 1701.07875, algorithm 1 and section 4; its authors' code has 100 critic steps at first
    "wgan": {"batch": 64, "z_dim": 100, "ch": 64, "g_net": "dcgan", "d_net": "dcgan", "penalty": "clip", "clip": 0.01}
    | {"g_lr": 5e-5, "d_lr": 5e-5, "d_steps": 5, "critic_steps": 100, "ema_kimg": 0},
    # arXiv 1704.00028, algorithm 1
    "wgan-gp": {"batch": 64, "penalty": "gp", "gp_weight": 10, "g_lr": 1e-4, "d_lr": 1e-4}
    | {"d_steps": 5, "critic_steps": 5, "ema_kimg": 0},
    # arXiv 2006.10728, supplement: 250 epochs of CIFAR-10, clusters every 25,000 steps
    "selfcond": {"batch": 64, "kimg": 250 * 50, "mirror": True, "cond": "cluster", "clusters": 100, "z_dim": 128}
    | {"recluster_kimg": 25 * 64, "cluster_images": 25_000, "embed_dim": 256, "g_lr": 1e-4, "d_lr": 1e-4}
    | {"gamma": 0, "ema_kimg": 0},
    # arXiv 1901.03554 with the settings of arXiv 1703.10593: 100 epochs of 400 pairs, and 100 as the rates fall
    "csgan": {"batch": 1, "kimg": 80, "lr_hold": 40, "g_lr": 2e-4, "d_lr": 2e-4, "adam_beta1": 0.5}
    | {"cycle_weight": 10, "cs_weight": 30, "identity_weight": 0, "pool_size": 50, "ch": 64, "blocks": 9}
    | {"ema_kimg": 0},
}
AVERAGES = {  # thousands of steps of the generator before the average begins
    **dict.fromkeys([*BIGGAN_ROWS, "biggan-deep128", "biggan-deep256", "logan"], 20),
    **{"biggan32": 1, "adc-cifar": 1, "sagan128": 2, "unet128": 21, "unet256": 21},
}
# Of systems that can't have an instance, or whose preset says it.
CONDITIONS: dict[str, str | None] = {"wgan": "none", "csgan": "none", "adc": "class", "selfcond": None}


def resolved(cfg: str, resolution: int | None = None, processes: int = 1) -> dict[str, Any]:
    """Options by a preset alone, but for what its system can't do without."""
    system = PRESETS[cfg].system
    flags = {"cond": CONDITIONS.get(system, "instance"), "data_b": "b.zip" if system == "csgan" else None}
    return resolve(cfg, flags, resolution or PRESETS[cfg].resolution or 64, processes).flat()


def said(options: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Of the options, those that are expected."""
    return {name: options[name] for name in expected}


@pytest.mark.parametrize("cfg", STYLEGAN2_ROWS)
def test_rows_of_stylegan2_are_the_published_table(cfg: str) -> None:
    row = dict(zip(STYLEGAN2_COLUMNS, STYLEGAN2_ROWS[cfg], strict=True))
    rate = row.pop("lr")
    expected = STYLEGAN2_ALL | STYLEGAN2_BUT.get(cfg, {}) | row | {"g_lr": rate, "d_lr": rate}
    assert said(resolved(cfg, RESOLUTIONS[cfg]), expected) == expected


@pytest.mark.parametrize(
    ("resolution", "batch", "channel_base", "rate"),
    [(32, 32, 16384, 0.0025), (256, 16, 16384, 0.0025), (512, 8, 32768, 0.0025), (1024, 4, 32768, 0.002)],
)
def test_auto_has_the_rules_of_the_published_automatic_configuration(
    resolution: int, batch: int, channel_base: int, rate: float
) -> None:
    expected = STYLEGAN2_ALL | {"batch": batch, "mbstd_group": 4, "channel_base": channel_base}
    expected |= {"g_lr": rate, "d_lr": rate, "map_layers": 2, "gamma": pytest.approx(0.0002 * resolution**2 / batch)}
    expected |= {"ema_kimg": batch * 10 / 32, "ema_rampup": 0.05, "num_fp16_res": 0, "conv_clamp": None}
    assert said(resolved("auto", resolution), expected) == expected


@pytest.mark.parametrize(("resolution", "batch", "gamma", "rate"), [(128, 64, 0.05, 0.0025), (256, 32, 0.5, 0.003)])
def test_rows_of_icgan_on_stylegan2_are_the_published_ones(
    resolution: int, batch: int, gamma: float, rate: float
) -> None:
    """arXiv 2109.05070, appendix B; the rest is the automatic configuration on two GPUs."""
    expected = STYLEGAN2_ALL | {"kimg": 100_000, "batch": batch, "mbstd_group": 4, "channel_base": 16384}
    expected |= {"gamma": gamma, "g_lr": rate, "d_lr": rate, "map_layers": 2}
    expected |= {"ema_kimg": batch * 10 / 32, "ema_rampup": 0.05}
    expected |= {"k": 5, "aug": "noaug", "mirror": True, "mirror_instances": True}
    assert said(resolved(f"icgan-coco{resolution}", processes=2), expected) == expected


@pytest.mark.parametrize("cfg", BIGGAN_ROWS)
def test_rows_of_icgan_on_biggan_are_the_published_table(cfg: str) -> None:
    expected = BIGGAN_ALL | dict(zip(BIGGAN_COLUMNS, BIGGAN_ROWS[cfg], strict=True))
    if expected["aug"] == "diffaug":
        expected["diffaug"] = "translation"
    assert said(resolved(cfg), expected) == expected


@pytest.mark.parametrize("cfg", OTHERS)
def test_rows_of_other_systems_are_the_published_ones(cfg: str) -> None:
    assert said(resolved(cfg, 256 if cfg == "csgan" else None), OTHERS[cfg]) == OTHERS[cfg]


@pytest.mark.parametrize("cfg", AVERAGES)
def test_averages_begin_and_forget_as_published(cfg: str) -> None:
    """0.9999 a step of the generator, which has d_steps of the discriminator, each on images of its own."""
    options, half = resolved(cfg), 6.931  # thousands of steps after which half is forgotten
    assert 0.5 ** (1 / (1000 * half)) == pytest.approx(0.9999, abs=1e-7)
    images = options["batch"] * options["d_steps"]  # for a step of the generator
    assert (options["ema_start"], options["ema_kimg"]) == pytest.approx((AVERAGES[cfg] * images, half * images))
    assert options["ema_rampup"] == 0


def test_every_preset_that_was_published_is_held_to_it() -> None:
    own = {name for name in PRESETS if name.endswith("-tiny")} | {"tiny", "biggan"}  # measured here, or a mere start
    held = {*STYLEGAN2_ROWS, *BIGGAN_ROWS, *OTHERS, "auto", "icgan-coco128", "icgan-coco256"}
    assert held == set(PRESETS) - own
