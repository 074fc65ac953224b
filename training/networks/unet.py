"""U-Net GAN: a discriminator that judges the image and every pixel, and its generator (Schönfeld et al., 2002.12655).

Encoder and decoder are made of BigGAN's blocks, the decoder's without normalisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks import biggan
from training.networks.conditional_norm import ConditionalBatchNorm
from training.networks.inputs import check_image, check_input
from training.networks.residual import DBlock, GBlock
from training.networks.spectral_norm import SNEmbedding, SNLinear, initialise

# Channels of the encoder's stages, as multiples of `ch`, from the image on; each halves the resolution, to 4 at last.
# 128 and 256 are published (arXiv 2002.12655, appendix); the others, ours, leave out the first stages of 128.
WIDTHS = {
    8: (16,),
    16: (8, 16),
    32: (4, 8, 16),
    64: (2, 4, 8, 16),
    128: (1, 2, 4, 8, 16),
    256: (1, 2, 4, 8, 8, 16),
}


class Generator(biggan.Generator):
    """BigGAN's without a condition: z itself modulates every stage (Chen et al., arXiv 1810.01365, section 2).

    The gain of a normalisation layer is 1 + W2 relu(W1 z + b), the bias likewise, with plain layers.
    """

    def __init__(
        self,
        z_dim: int,
        img_resolution: int,  # a row of biggan.WIDTHS
        img_channels: int,
        ch: int = 64,  # channels of width 1
        init: str = "ortho",  # see `initialise`
        bn_momentum: float = 0.1,  # share of the batch in the running statistics
        bn_across: bool = True,  # normalise over the batches of all processes together
        sn_eps: float = 1e-6,
    ) -> None:
        super().__init__(
            z_dim,
            0,
            img_resolution,
            img_channels,
            ch=ch,
            hier=False,
            shared=False,
            init=init,
            bn_momentum=bn_momentum,
            bn_across=bn_across,
            sn_eps=sn_eps,
        )
        for norm in self.modules():
            if isinstance(norm, ConditionalBatchNorm):
                channels = len(norm.stored_mean)
                norm.gain, norm.bias = modulation(z_dim, channels), modulation(z_dim, channels)

    def _inputs(self, z: Tensor, c: Tensor | None, h: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        return z, [z] * len(self.blocks)


def modulation(z_dim: int, channels: int) -> torch.nn.Sequential:
    """[N, z_dim] -> [N, channels]"""
    hidden, out = torch.nn.Linear(z_dim, z_dim), torch.nn.Linear(z_dim, channels, bias=False)
    return torch.nn.Sequential(hidden, torch.nn.ReLU(), out)


class Unnormalised(torch.nn.Module):
    """Stands where a generator's block has its normalisation."""

    def forward(self, x: Tensor, y: None) -> Tensor:
        return x


class Projection(torch.nn.Module):
    """<embedding of the condition, x> for every x of a vector or a map (Miyato and Koyama, arXiv 1802.05637)."""

    def __init__(self, c_dim: int, h_dim: int, channels: int, eps: float) -> None:
        super().__init__()
        self.embed = SNEmbedding(c_dim, channels, eps=eps) if c_dim > 0 else None
        self.linear_feat = SNLinear(h_dim, channels, eps=eps) if h_dim > 0 else None

    def forward(self, x: Tensor, c: Tensor | None, h: Tensor | None) -> Tensor:
        """[N, channels, H, W] -> [N, 1, H, W]; the sum of both embeddings where there are a class and an instance."""
        total = torch.zeros_like(x[:, :1])
        for layer, condition in ((self.embed, c), (self.linear_feat, h)):
            if layer is not None:
                total = total + (layer(condition.float())[:, :, None, None] * x).sum(dim=1, keepdim=True)
        return total


class Discriminator(torch.nn.Module):
    """Images and the condition -> a logit for the image, from the encoder, and one for every pixel, from the decoder.

    The decoder sees the encoder's output of each resolution beside its own, but not the image itself.
    """

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,  # a row of WIDTHS
        img_channels: int,
        h_dim: int = 0,  # width of the instance features; 0: none
        ch: int = 64,  # channels of width 1
        init: str = "ortho",  # see `initialise`
        sn_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if img_resolution not in WIDTHS or ch < 1:
            there = ", ".join(map(str, WIDTHS))
            raise ValueError(f"img_resolution: {img_resolution}, ch: {ch}; expected one of {there}, and 1 or more.")
        self.c_dim, self.h_dim = c_dim, h_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        down = [ch * multiple for multiple in WIDTHS[img_resolution]]
        up = [*reversed(down[:-1]), down[0]]

        # Down to 4x4.
        self.encoder = torch.nn.ModuleList(
            DBlock(narrow, wide, first=stage == 0, down=True, eps=sn_eps)
            for stage, (narrow, wide) in enumerate(zip([img_channels, *down], down, strict=False))
        )
        self.linear = SNLinear(down[-1], 1, eps=sn_eps)
        self.projection = Projection(c_dim, h_dim, down[-1], sn_eps)

        # And up again, beside what the encoder had at each resolution.
        inputs = [down[-1], *(2 * width for width in up)]
        self.decoder = torch.nn.ModuleList(
            GBlock(wide, narrow, norm=lambda channels: Unnormalised(), up=True, eps=sn_eps)
            for wide, narrow in zip(inputs, up, strict=False)
        )
        self.pixel_conv = torch.nn.Conv2d(up[-1], 1, kernel_size=1)
        self.pixel_projection = Projection(c_dim, h_dim, up[-1], sn_eps)
        initialise(self, init)

    def forward(self, img: Tensor, c: Tensor | None = None, h: Tensor | None = None) -> Tensor:
        """
        Args:
            img: [N, img_channels, img_resolution, img_resolution], floating point, about [-1, 1].
            c: labels [N, c_dim]; None or [N, 0] if c_dim is 0.
            h: instance features [N, h_dim]; None or [N, 0] if h_dim is 0.

        Returns:
            logits of the images, float32 [N, 1].

        Raises:
            ValueError: an input is missing or of another shape.
        """
        self._check(img, c, h)
        return self._judge(self._encode(img)[-1], c, h)

    def both(self, img: Tensor, c: Tensor | None = None, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, and the logits of the pixels, float32 [N, 1, img_resolution, img_resolution]."""
        self._check(img, c, h)
        maps = self._encode(img)
        x = self.decoder[0](maps[-1], None)  # [N, channels, 8, 8]
        for block, beside in zip(self.decoder[1:], reversed(maps[:-1]), strict=True):
            x = block(torch.cat([x, beside], dim=1), None)  # [N, channels, 2 R, 2 R]
        return self._judge(maps[-1], c, h), self.pixel_conv(x) + self.pixel_projection(x, c, h)

    def features(self, img: Tensor) -> Tensor:
        """What the logit of an image is made of: the sum over all pixels of the last features, [N, channels]."""
        return F.relu(self._encode(img)[-1]).sum(dim=[2, 3])

    def _encode(self, img: Tensor) -> list[Tensor]:
        """What each stage of the encoder gives, [N, channels, R, R], the last one 4x4."""
        maps = [img.float()]
        for block in self.encoder:
            maps.append(block(maps[-1]))
        return maps[1:]

    def _judge(self, x: Tensor, c: Tensor | None, h: Tensor | None) -> Tensor:
        """[N, channels, 4, 4] -> [N, 1]"""
        x = F.relu(x).sum(dim=[2, 3])
        logits: Tensor = self.linear(x) + self.projection(x[:, :, None, None], c, h).flatten(1)
        return logits

    def _check(self, img: Tensor, c: Tensor | None, h: Tensor | None) -> None:
        check_image(img, self.img_channels, self.img_resolution)
        check_input("c", c, self.c_dim, len(img))
        check_input("h", h, self.h_dim, len(img))
