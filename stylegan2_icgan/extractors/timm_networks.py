"""Any image network of timm as an extractor: `timm:NAME`, or `timm:NAME@SIDE` for images of another size."""

from types import ModuleType
from typing import Any, NamedTuple

import torch

from stylegan2_icgan.extractors.extractor import PCA, REMEDY
from stylegan2_icgan.extractors.preprocessing import Preprocessing
from torch_utils.command_line import UserError, nearest
from torch_utils.published import Download, HubFile
from torch_utils.weights import Weights, one_line

PREFIX = "timm:"
WRAPPED = ("module.", "_orig_mod.")  # by DistributedDataParallel and torch.compile
# What timm raises when a network can't be made so, or when weights are another network's.
MISFITS = (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError)


class Name(NamedTuple):
    """`timm:NETWORK@SIDE` in its parts."""

    network: str
    side: int | None  # pixels; None: the network's own


def parse(name: str) -> Name:
    """`timm:vit_small_patch14_reg4_dinov2.lvd142m@224` -> its parts.

    Raises:
        UserError: a side that is no number of pixels.
    """
    network, at, side = name.removeprefix(PREFIX).partition("@")
    if at and not (side.isdecimal() and 16 <= int(side) <= 4096):
        raise UserError(
            f"--extractor={name}: {side!r} after @ is no size; expected 16 to 4096 pixels, for example @224"
        )
    return Name(network, int(side) if at else None)


def import_timm(name: str) -> ModuleType:
    """timm, which is optional and takes seconds to import."""
    try:
        import timm
        import timm.data
    except ImportError:
        raise UserError(f"--extractor={name} needs timm: pip install timm, {PCA}") from None
    module: ModuleType = timm
    return module


def check(name: str) -> None:
    """Whether timm has such a network.

    Raises:
        UserError: it has not (nearest match offered), or timm is missing.
    """
    network, _ = parse(name)
    timm = import_timm(name)
    kind, dot, tag = network.partition(".")
    if not kind or not timm.is_model(kind):
        known = [*timm.list_models(), *timm.list_models(pretrained=True)]
        raise UserError(f"--extractor={name}: timm {timm.__version__} has no {network!r}.{nearest(network, known)}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{kind}.*", pretrained=True)]
    if dot and tag not in tags:
        there = ", ".join(tags) or "none"
        raise UserError(f"--extractor={name}: timm has no weights {tag!r} of {kind}; there are: {there}")


def published(name: str, revision: str = "main") -> HubFile | Download:
    """Where the weights of `name` are published.

    Args:
        revision: of the repository, a branch or a commit.

    Raises:
        UserError: timm knows no weights for it.
    """
    check(name)
    config = import_timm(name).get_pretrained_cfg(parse(name).network)
    if config is not None and config.hf_hub_id:
        return HubFile(config.hf_hub_id, revision)
    if config is not None and isinstance(config.url, str) and config.url:
        return Download(config.url)
    raise UserError(f"--extractor={name}: timm publishes no weights for it; {REMEDY}")


def build(name: str, weights: Weights) -> tuple[torch.nn.Module, Preprocessing, dict[str, Any]]:
    """The network without its classifier, output pooled; how images are brought to it; what to note of it.

    Weights are loaded strictly, so a file of another network can't pass for this one's.

    Raises:
        UserError: an unknown network, or weights that are not its own.
    """
    check(name)
    timm, (network_name, side) = import_timm(name), parse(name)
    config = timm.get_pretrained_cfg(network_name)
    overlay = {"input_size": (config.input_size[0], side, side)} if side else {}
    network = _load(timm, network_name, overlay, config.classifier, _unwrapped(weights.tensors()), name, weights)
    try:
        preprocessing = Preprocessing.from_timm(timm.data.resolve_model_data_config(network))
    except ValueError as error:
        raise UserError(f"--extractor={name} can't be used: {error}") from None
    notes = {"licence": config.license} if config.license and weights.origin != "file" else {}
    return network, preprocessing, notes


def _load(
    timm: ModuleType,
    network_name: str,
    overlay: dict[str, Any],
    classifier: str | tuple[str, ...] | None,
    tensors: dict[str, torch.Tensor],
    name: str,
    weights: Weights,
) -> torch.nn.Module:
    """The network with these tensors in it, all of them, and without its classifier.

    timm loads strictly only when the numbers of classes agree. So a classifier under its usual name is taken out and
    a network of no classes made; where it has another name, in the formats that timm translates while loading, a
    network with the classifier is made, which then is removed.
    """
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    heads = {f"{part}.{kind}" for part in names for kind in ("weight", "bias")}
    bare = {key: tensor for key, tensor in tensors.items() if key not in heads}
    refusal: Exception | None = None
    for state, without in ((bare, {"num_classes": 0}), (tensors, {})):
        try:
            network = timm.create_model(
                network_name,
                pretrained=True,
                pretrained_cfg_overlay=overlay | without | {"state_dict": dict(state)},
                **without,
            )
        except MISFITS as error:
            refusal = refusal or error
            continue
        network.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
        if not without:
            network.reset_classifier(0)
        return network
    raise UserError(f"{weights.label} does not fit --extractor={name}: {one_line(refusal)}")


def _unwrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what training put before every name."""
    for prefix in WRAPPED * 2:  # in either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
