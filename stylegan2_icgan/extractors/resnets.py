"""ResNet-50 in torchvision's layout: published for ImageNet, or from the files of SwAV or of long-tailed training."""

from typing import Any

import torch

from stylegan2_icgan.extractors.preprocessing import Preprocessing
from torch_utils.command_line import UserError
from torch_utils.published import Download
from torch_utils.weights import Weights

PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
ANCHOR = "layer1.0.conv1.weight"  # what stands before it is the prefix of all
LICENCES = {"resnet50": "BSD-3-Clause", "swav": "CC BY-NC 4.0"}
NEEDS_FILE = {
    "swav": "SwAV's ResNet-50, for example swav_800ep_pretrain.pth.tar (licence: CC BY-NC 4.0)",
    "resnet50-lt": "a ResNet-50 trained on long-tailed data",
}
# Images are squares already, and resized to 224 with nothing cropped, as IC-GAN's features were made.
PREPROCESSING = Preprocessing(
    (224, 224), (224, 224), "squash", "bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def published(name: str) -> Download:
    """Where the weights of `name` are published.

    Raises:
        UserError: they come as a file only.
    """
    if name in NEEDS_FILE:
        raise UserError(f"--extractor={name} needs its weights: --extractor-weights=FILE, {NEEDS_FILE[name]}")
    import torchvision

    return Download(torchvision.models.ResNet50_Weights.IMAGENET1K_V2.url)


def build(name: str, weights: Weights) -> tuple[torch.nn.Module, Preprocessing, dict[str, Any]]:
    """The network whose output is pooled, [N, 2048]; how images are brought to it; what to note of it.

    Raises:
        UserError: the file is no ResNet-50 in torchvision's naming.
    """
    import torchvision

    tensors, dropped = backbone(weights)
    network = torchvision.models.resnet50(weights=None)
    network.fc = torch.nn.Identity()
    expected = network.state_dict()
    lacking = [key for key in expected if key not in tensors and not key.endswith("num_batches_tracked")]
    foreign = [key for key in tensors if key not in expected]
    misfits = [key for key in expected if key in tensors and tensors[key].shape != expected[key].shape]
    for keys, what in (
        (lacking, "lacks {} tensors of a ResNet-50 (first: {})"),
        (foreign, "has {} tensors that a ResNet-50 has not (first: {})"),
        (misfits, "has {} tensors of other shapes than a ResNet-50 (first: {})"),
    ):
        if keys:
            reason = what.format(len(keys), keys[0])
            raise UserError(f"{weights.label} {reason}; expected a ResNet-50 in torchvision's naming")
    network.load_state_dict(expected | tensors)
    notes = {"dropped": dropped} | ({"licence": LICENCES[name]} if name in LICENCES else {})
    return network, PREPROCESSING, notes


def backbone(weights: Weights) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of the network proper under torchvision's names, and the parts that were left out.

    Left out are classifiers, projection heads and prototypes; prefixes such as `module.` or `backbone.` are removed.

    Raises:
        UserError: no ResNet in it, or more than one.
    """
    tensors = weights.tensors()
    prefixes = sorted(name.removesuffix(ANCHOR) for name in tensors if f".{name}".endswith(f".{ANCHOR}"))
    if not prefixes:
        raise UserError(
            f"{weights.label} lacks {ANCHOR} (its first tensor is {next(iter(tensors), 'none')}); expected a ResNet-50 "
            "in torchvision's naming"
        )
    if len(prefixes) > 1:
        raise UserError(
            f"{weights.label} holds {len(prefixes)} networks ({', '.join(prefixes)}); save the state dict of one alone"
        )
    named = {name.removeprefix(prefixes[0]): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in named.items() if name.split(".")[0] in PARTS}
    return kept, sorted({name.removeprefix("module.").split(".")[0] for name in named} - set(PARTS))
