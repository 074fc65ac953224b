"""BigGAN, BigGAN-deep and SAGAN generators and discriminators, conditioned on nothing, a class, an instance or both.

SAGAN: Zhang et al., arXiv 1805.08318. BigGAN and BigGAN-deep: Brock et al., arXiv 1809.11096, appendix B. Instances:
Casanova et al., arXiv 2109.05070, appendix A. Parameters and buffers have the names and shapes of the published
PyTorch checkpoints.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from training.networks.attention import SelfAttention
from training.networks.conditional_norm import BatchNorm, ConditionalBatchNorm
from training.networks.inputs import NOISE_MODES, check_image, check_input
from training.networks.residual import DBlock, DeepDBlock, DeepGBlock, GBlock, Norm, activate, set_slope
from training.networks.spectral_norm import Embedding, SNConv2d, SNEmbedding, SNLinear, initialise, without_autocast


@dataclass(frozen=True)
class Widths:
    """Channels of both networks, as multiples of `ch`: between consecutive stages, from the latent or image on.

    BigGAN-deep has one stage less in its discriminator: a convolution takes the image to the first width.
    """

    g: tuple[int, ...]
    d: tuple[int, ...]
    d_down: int  # first so many stages of D that halve the resolution


# 32: the published CIFAR networks; 64: those of IC-GAN; 128, 256: BigGAN, appendix B. 512: G as published, D as
# at 256 with one more stage at the image. 8, 16: ours, as 32, for the smallest data.
WIDTHS = {
    8: Widths(g=(4, 4), d=(4, 4), d_down=1),
    16: Widths(g=(4, 4, 4), d=(4, 4, 4), d_down=2),
    32: Widths(g=(4, 4, 4, 4), d=(4, 4, 4, 4), d_down=2),
    64: Widths(g=(16, 16, 8, 4, 2), d=(1, 2, 4, 8, 16), d_down=4),
    128: Widths(g=(16, 16, 8, 4, 2, 1), d=(1, 2, 4, 8, 16, 16), d_down=5),
    256: Widths(g=(16, 16, 8, 8, 4, 2, 1), d=(1, 2, 4, 8, 8, 16, 16), d_down=6),
    512: Widths(g=(16, 16, 8, 8, 4, 2, 1, 1), d=(1, 1, 2, 4, 8, 8, 16, 16), d_down=7),
}
FIRST = 4  # resolution the generator starts at


def widths_at(img_resolution: int) -> Widths:
    """The row of `WIDTHS`.

    Raises:
        ValueError: there is none.
    """
    if img_resolution not in WIDTHS:
        raise ValueError(f"img_resolution: {img_resolution} has no row; expected one of {', '.join(map(str, WIDTHS))}.")
    return WIDTHS[img_resolution]


def attention_resolutions(img_resolution: int) -> tuple[list[int], list[int]]:
    """Resolutions that the stages of the generator and of the discriminator give: where self-attention can be."""
    widths = widths_at(img_resolution)
    g = [FIRST << stage for stage in range(1, len(widths.g))]
    d = [img_resolution >> stage for stage in range(1, widths.d_down + 1)]
    return g, d


class Generator(torch.nn.Module):
    """z and the condition -> images.

    What conditions every normalisation layer is the embedding of the class and that of the instance, joined, and a
    part of z. Without class and instance one learned row takes their place: a class-conditional network whose label is
    always 0, which is what the published "unconditional" ones are.
    """

    w_dim = num_ws = 0  # z goes straight into the layers: there is no w, and nothing to project an image to

    def __init__(
        self,
        z_dim: int,  # rounded down to equal chunks where z is split
        c_dim: int,
        img_resolution: int,  # a row of WIDTHS
        img_channels: int,
        h_dim: int = 0,  # width of the instance features; 0: none
        ch: int = 64,  # channels of width 1
        deep: bool = False,  # BigGAN-deep: two bottleneck blocks a stage
        hier: bool = True,  # z conditions every stage too: a chunk of it, or all of it where deep
        shared: bool = True,  # one embedding of the class for all layers; False: a row a class in every layer (SAGAN)
        shared_dim: int = 128,  # width of the embedding of the class
        shared_dim_feat: int = 512,  # width of the embedding of the instance; with one, the class is `shared` anyway
        attention: Sequence[int] = (),  # resolutions with self-attention
        label_rows: int = 0,  # with c_dim 0: rows of the table of classes, as published; only the first is ever used
        slope: float = 0.0,  # of LeakyReLUs; 0: ReLUs
        init: str = "ortho",  # see `initialise`
        bn_momentum: float = 0.1,  # share of the batch in the running statistics
        bn_eps: float = 1e-5,
        bn_across: bool = True,  # normalise over the batches of all processes together
        sn_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        widths = [ch * multiple for multiple in widths_at(img_resolution).g]
        num_stages = len(widths) - 1
        shared = shared or h_dim > 0
        check_structure(ch, c_dim, label_rows, attention, attention_resolutions(img_resolution)[0])
        if hier and not shared:
            raise ValueError("hier: z can only join a shared embedding; expected shared=True or hier=False.")
        num_chunks = num_stages + 1 if hier and not deep else 1
        if z_dim < num_chunks:
            raise ValueError(f"z_dim: {z_dim} leaves nothing for {num_chunks} chunks; expected {num_chunks} or more.")
        self.chunk = z_dim // num_chunks
        self.z_dim, self.c_dim, self.h_dim = self.chunk * num_chunks, c_dim, h_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.deep, self.hier = deep, hier

        # Embed the condition.
        self.shared = self.shared_feat = None
        y_dim = 0
        if shared and (c_dim > 0 or h_dim == 0 or label_rows > 0):
            self.shared = Embedding(c_dim or max(label_rows, 1), shared_dim)
            y_dim += shared_dim if c_dim > 0 or h_dim == 0 else 0
        if h_dim > 0:
            self.shared_feat = SNLinear(h_dim, shared_dim_feat, eps=sn_eps)
            y_dim += shared_dim_feat
        if hier:
            y_dim += self.chunk
        layer = partial(SNLinear, y_dim, bias=False, eps=sn_eps) if shared else partial(Embedding, max(c_dim, 1))

        def norm(channels: int) -> ConditionalBatchNorm:
            return ConditionalBatchNorm(channels, layer(channels), layer(channels), bn_momentum, bn_eps, bn_across)

        # Stack the stages, each twice the resolution of the one before.
        self.linear = SNLinear(y_dim if deep and hier else self.chunk, widths[0] * FIRST**2, eps=sn_eps)
        self.blocks = torch.nn.ModuleList()
        for stage in range(num_stages):
            blocks = g_stage(widths[stage], widths[stage + 1], norm, deep, sn_eps)
            if FIRST << (stage + 1) in attention:
                blocks.append(SelfAttention(widths[stage + 1], eps=sn_eps))
            self.blocks.append(torch.nn.ModuleList(blocks))
        self.output_layer = torch.nn.Sequential(
            BatchNorm(widths[-1], bn_momentum, bn_eps, bn_across),
            torch.nn.LeakyReLU(slope) if slope else torch.nn.ReLU(),
            SNConv2d(widths[-1], img_channels, kernel_size=3, eps=sn_eps),
        )

        set_slope(self, slope)
        initialise(self, init)
        for module in self.modules():
            if isinstance(module, ConditionalBatchNorm) and not shared:
                torch.nn.init.zeros_(module.gain.weight)  # gain 1 and bias 0 for every class
                torch.nn.init.zeros_(module.bias.weight)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        h: Tensor | None = None,
        *,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
        force_fp32: bool = False,
    ) -> Tensor:
        """
        Args:
            z: [N, z_dim] ~ N(0, 1).
            c: labels [N, c_dim]; None or [N, 0] if c_dim is 0.
            h: instance features [N, h_dim]; None or [N, 0] if h_dim is 0.
            truncation_psi: standard deviation of z: z is multiplied by it.
            truncation_cutoff: how many of the first chunks of z to truncate; None: all. Where z is in one piece it is
                the only chunk.
            noise_mode: as of the other generators. There is no noise besides z, so each of them does the same.
            force_fp32: float32 also under autocast.

        Returns:
            float32 [N, img_channels, img_resolution, img_resolution] in [-1, 1].

        Raises:
            ValueError: an input is missing or of another width, or there is no such noise mode.
        """
        check_input("z", z, self.z_dim, None)
        check_input("c", c, self.c_dim, len(z))
        check_input("h", h, self.h_dim, len(z))
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode: {noise_mode!r} is not one of {', '.join(NOISE_MODES)}.")
        with without_autocast(z.device) if force_fp32 else nullcontext():
            z = truncated(z.float(), truncation_psi, truncation_cutoff, self.chunk)
            first, ys = self._inputs(z, c, h)
            x = self.linear(first).unflatten(1, (-1, FIRST, FIRST))  # [N, channels, 4, 4]
            for blocks, y in zip(self.blocks, ys, strict=True):
                for block in blocks:
                    x = block(x) if isinstance(block, SelfAttention) else block(x, y)  # [N, channels, 2 R, 2 R]
            return torch.tanh(self.output_layer(x).float())

    def _inputs(self, z: Tensor, c: Tensor | None, h: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """What the first layer is given, [N, linear.in_features], and each stage, [N, y_dim]."""
        parts = []
        if self.c_dim > 0:
            parts.append(c.float() if self.shared is None else self.shared(c.float()))  # [N, shared_dim]
        elif self.h_dim == 0:
            row = z.new_ones(1, 1) if self.shared is None else self.shared.weight[:1]
            parts.append(row.expand(len(z), -1))  # [N, shared_dim]
        if self.h_dim > 0:
            parts.append(self.shared_feat(h.float()))  # [N, shared_dim_feat]
        if not self.hier:
            return z, [torch.cat(parts, dim=1)] * len(self.blocks)
        if self.deep:
            y = torch.cat([*parts, z], dim=1)
            return y, [y] * len(self.blocks)
        first, *chunks = z.split(self.chunk, dim=1)  # [N, chunk]
        return first, [torch.cat([*parts, chunk], dim=1) for chunk in chunks]


class Discriminator(torch.nn.Module):
    """Images and the condition -> logits, by projection (Miyato and Koyama, arXiv 1802.05637, section 3).

    logit = linear(x) + <embedding of the condition, x>; with a class and an instance each has half of x's width.
    """

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,  # a row of WIDTHS
        img_channels: int,
        h_dim: int = 0,  # width of the instance features; 0: none
        ch: int = 64,  # channels of width 1
        deep: bool = False,  # BigGAN-deep: two bottleneck blocks a stage
        attention: Sequence[int] = (),  # resolutions with self-attention
        label_rows: int = 0,  # with c_dim and h_dim 0: rows of the table of classes, as published; the first is used
        slope: float = 0.0,  # of LeakyReLUs; 0: ReLUs
        init: str = "ortho",  # see `initialise`
        sn_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        table = widths_at(img_resolution)
        widths = [ch * multiple for multiple in table.d]
        check_structure(ch, c_dim, label_rows, attention, attention_resolutions(img_resolution)[1])
        self.c_dim, self.h_dim = c_dim, h_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels

        # Stack the stages.
        self.input_conv = None
        if deep:
            self.input_conv = SNConv2d(img_channels, widths[0], kernel_size=3, eps=sn_eps)
        else:
            widths = [img_channels, *widths]
        self.blocks = torch.nn.ModuleList()
        for stage in range(len(widths) - 1):
            down = stage < table.d_down
            blocks = d_stage(widths[stage], widths[stage + 1], stage == 0, down, deep, sn_eps)
            if down and img_resolution >> (stage + 1) in attention:
                blocks.append(SelfAttention(widths[stage + 1], eps=sn_eps))
            self.blocks.append(torch.nn.ModuleList(blocks))

        # End in a logit.
        self.linear = SNLinear(widths[-1], 1, eps=sn_eps)
        self.embed = self.linear_feat = None
        labels = c_dim if h_dim > 0 else c_dim or label_rows
        share = widths[-1] // 2 if labels > 0 and h_dim > 0 else widths[-1]
        if labels > 0:
            self.embed = SNEmbedding(labels, share, eps=sn_eps)
        if h_dim > 0:
            self.linear_feat = SNLinear(h_dim, share, eps=sn_eps)
        self.slope = slope
        set_slope(self, slope)
        initialise(self, init)

    def features(self, img: Tensor) -> Tensor:
        """What the logit is made of: the sum over all pixels of the last features, [N, channels]."""
        x = img if self.input_conv is None else self.input_conv(img)
        for blocks in self.blocks:
            for block in blocks:
                x = block(x)  # [N, channels, R / 2, R / 2], the last ones of the same R
        return activate(x, self.slope).float().sum(dim=[2, 3])

    def forward(
        self, img: Tensor, c: Tensor | None = None, h: Tensor | None = None, *, force_fp32: bool = False
    ) -> Tensor:
        """
        Args:
            img: [N, img_channels, img_resolution, img_resolution], floating point, about [-1, 1].
            c: labels [N, c_dim]; None or [N, 0] if c_dim is 0.
            h: instance features [N, h_dim]; None or [N, 0] if h_dim is 0.
            force_fp32: float32 also under autocast.

        Returns:
            logits, float32 [N, 1].

        Raises:
            ValueError: an input is missing or of another shape.
        """
        check_image(img, self.img_channels, self.img_resolution)
        check_input("c", c, self.c_dim, len(img))
        check_input("h", h, self.h_dim, len(img))
        with without_autocast(img.device) if force_fp32 else nullcontext():
            return self.logits(self.features(img.float()), c, h)

    def logits(self, x: Tensor, c: Tensor | None, h: Tensor | None) -> Tensor:
        """What `forward` makes of the features of an image, [N, channels] -> float32 [N, 1]."""
        parts = []
        if self.embed is not None:
            always = torch.eye(1, len(self.embed.weight), device=x.device).expand(len(x), -1)  # label 0
            parts.append(self.embed(c.float() if self.c_dim > 0 else always))  # [N, channels, or half of them]
        if self.linear_feat is not None:
            parts.append(self.linear_feat(h.float()))  # [N, channels, or half of them]
        logits: Tensor = self.linear(x).float()
        if parts:
            logits = logits + (torch.cat(parts, dim=1).float() * x).sum(dim=1, keepdim=True)
        return logits


def g_stage(in_channels: int, out_channels: int, norm: Norm, deep: bool, eps: float) -> list[torch.nn.Module]:
    """The blocks of one stage of the generator; the last one doubles the resolution."""
    if not deep:
        return [GBlock(in_channels, out_channels, norm, up=True, eps=eps)]
    return [
        DeepGBlock(in_channels, in_channels, norm, up=False, eps=eps),
        DeepGBlock(in_channels, out_channels, norm, up=True, eps=eps),
    ]


def d_stage(
    in_channels: int, out_channels: int, first: bool, down: bool, deep: bool, eps: float
) -> list[torch.nn.Module]:
    """The blocks of one stage of the discriminator; with `down` the first one halves the resolution."""
    if not deep:
        return [DBlock(in_channels, out_channels, first, down, eps)]
    return [
        DeepDBlock(in_channels, out_channels, down, eps),
        DeepDBlock(out_channels, out_channels, down=False, eps=eps),
    ]


def truncated(z: Tensor, psi: float, cutoff: int | None, chunk: int) -> Tensor:
    """z times psi, or its first `cutoff` chunks alone: a smaller deviation gives fidelity for variety.

    BigGAN (section 3.1) draws values beyond a threshold again; the published PyTorch code takes a smaller deviation,
    as here, which keeps an image a smooth function of psi.
    """
    if psi == 1:
        return z
    end = z.shape[1] if cutoff is None else cutoff * chunk
    return torch.cat([z[:, :end] * psi, z[:, end:]], dim=1)


def check_structure(ch: int, c_dim: int, label_rows: int, attention: Sequence[int], there: Sequence[int]) -> None:
    """Refuse what no network can be made of."""
    if ch < 1:
        raise ValueError(f"ch: {ch} leaves no channels; expected 1 or more.")
    if label_rows < 0 or (label_rows > 0 and c_dim > 0):
        raise ValueError(f"label_rows: {label_rows} with c_dim {c_dim}; it is for networks without labels.")
    for resolution in attention:
        if resolution not in there:
            raise ValueError(
                f"attention: {resolution} is no resolution of this network; it has {', '.join(map(str, there))}."
            )
