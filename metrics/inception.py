"""The Inception-v3 of TensorFlow's 2015 graph, by torch-fidelity's module: what FID, KID and IS mean by default."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metrics.resizing import resized, seen_at, with_colour
from torch_utils.command_line import UserError
from torch_utils.float32 import exact_float32
from torch_utils.published import Download, copy_of

FLAG = "--detector-weights"
WEIGHTS = Download(  # licence: Apache-2.0
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
SIDE = 299
FIRST_LAYER = "Conv2d_1a_3x3"  # of torch-fidelity's module


class Inception:
    """uint8 images -> 2048 features, or 1008 logits without the last layer's bias (as IS is published).

    torch-fidelity's module takes 8-bit images and resizes them itself, which rounds. Here it gets a blank image, and
    its first layer what `resized` made of the true one: the filter is ours to choose, and nothing is rounded.
    """

    width, batch = 2048, 64

    def __init__(self, network: torch.nn.Module, how: str, device: torch.device, sha256: str) -> None:
        self.network, self.how, self.device = network.to(device), how, device
        self.description: dict[str, Any] = {
            "name": "inception",
            "sha256": sha256,
        } | seen_at(SIDE, how)

    @classmethod
    def load(cls, weights: Path | None, how: str, device: torch.device) -> "Inception":
        """
        Raises:
            UserError: torch-fidelity is missing, or the weights are, or they are not the published ones.
        """
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError(
                "--detector=inception needs torch-fidelity: pip install torch-fidelity  (or another --detector, whose "
                "numbers are not comparable with published FIDs)"
            ) from None
        found = copy_of(WEIGHTS, "--detector=inception", FLAG, weights)  # its hash is checked before it is loaded
        network = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(found.path)
        )
        return cls(network, how, device, found.sha256)

    def features(self, images: Tensor) -> Tensor:
        """float32 [N, 2048] of uint8 [N, 1 or 3, H, W]."""
        return self._run(images)[0]

    def logits(self, images: Tensor) -> Tensor:
        """float32 [N, 1008]"""
        return self._run(images)[1]

    @torch.no_grad()
    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen = (resized(with_colour(images.to(self.device)), SIDE, self.how) - 128) / 128
        blank = torch.zeros(len(images), 3, SIDE, SIDE, dtype=torch.uint8, device=self.device)
        layer = self.network.get_submodule(FIRST_LAYER)
        handle = layer.register_forward_pre_hook(lambda module, inputs: (seen,))
        try:
            with exact_float32():
                features, logits = self.network(blank)
        finally:
            handle.remove()
        return features.float(), logits.float()
