"""The mapping network of StyleGAN (Karras et al., arXiv 1812.04948): noise and condition -> styles.

One that embeds other conditions takes the place of `MappingNetwork` by way of the constructors of generator and
discriminator; nothing in those knows of them.
"""

import itertools

import torch
from torch import Tensor

from torch_utils.misc import follow
from training.networks.inputs import check_input
from training.networks.layers import (
    FullyConnectedLayer,
    normalize_2nd_moment,
)


class MappingNetwork(torch.nn.Module):
    """z and the condition -> ws (StyleGAN, section 2).

    A subclass that conditions on more overrides `embed_condition`, passes the width of what that returns as
    `cond_features`, and sets `h_dim` if h is part of it.
    """

    h_dim = 0  # width of h; the base takes none

    def __init__(
        self,
        z_dim: int,  # 0: no noise
        c_dim: int,  # 0: no labels
        w_dim: int,
        num_ws: int | None,  # copies of w, one a layer; None: one w without that axis, and no mean of w
        num_layers: int = 8,
        embed_features: int | None = None,  # width of the embedding of c; None: w_dim
        layer_features: int | None = None,  # width between layers; None: w_dim
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,  # of the layers, not of the embedding
        w_avg_beta: float = 0.995,  # share that the mean of w keeps in an update
        cond_features: int | None = None,  # width of what embed_condition returns; None: the embedding of c alone
    ) -> None:
        super().__init__()
        embed_features = w_dim if embed_features is None else embed_features
        layer_features = w_dim if layer_features is None else layer_features
        if cond_features is None:
            cond_features = embed_features if c_dim > 0 else 0
        if num_layers < 1:
            raise ValueError(f"num_layers: {num_layers} is not a number of layers >= 1.")
        if z_dim + cond_features == 0:
            raise ValueError("z_dim and the condition are both of width 0: there is nothing to map.")
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta

        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        widths = [z_dim + cond_features] + [layer_features] * (num_layers - 1) + [w_dim]
        for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            layer = FullyConnectedLayer(width_in, width_out, activation=activation, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{index}", layer)
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def embed_condition(self, c: Tensor | None, h: Tensor | None) -> Tensor | None:
        """Embeddings [N, cond_features] of the condition, before normalisation; None where there is no condition."""
        return self.embed(c.float()) if self.c_dim > 0 else None

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        h: Tensor | None = None,
        *,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_w_avg: bool = False,
    ) -> Tensor:
        """
        Args:
            z: [N, z_dim] ~ N(0, 1); None if z_dim is 0.
            c: labels [N, c_dim]; None or [N, 0] if c_dim is 0.
            h: instance features [N, h_dim]; None or [N, 0] if h_dim is 0.
            truncation_psi: 1 leaves w as it is, 0 makes it the mean.
            truncation_cutoff: how many of the first ws to truncate; None: all.
            update_w_avg: move the mean of w towards this batch's.

        Returns:
            ws, float32 [N, num_ws, w_dim]; [N, w_dim] if num_ws is None.

        Raises:
            ValueError: an input is missing or of another width.
        """
        if (truncation_psi != 1 or update_w_avg) and self.num_ws is None:
            raise ValueError("truncation_psi, update_w_avg: a mapping network without num_ws keeps no mean of w.")
        check_input("z", z, self.z_dim, None)
        num = next((len(value) for value in (z, c, h) if value is not None), None)
        check_input("c", c, self.c_dim, num)
        check_input("h", h, self.h_dim, num)

        # Normalise z, and the embeddings of the condition all together.
        parts = []
        if self.z_dim > 0:
            parts.append(normalize_2nd_moment(z.float()))  # [N, z_dim]
        cond = self.embed_condition(c, h)  # [N, cond_features]
        if cond is not None:
            parts.append(normalize_2nd_moment(cond))
        x = torch.cat(parts, dim=1)  # [N, z_dim + cond_features]

        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)  # [N, layer_features], at last [N, w_dim]
        if self.num_ws is None:
            return x

        if update_w_avg:
            follow(self.w_avg, x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        ws = x.unsqueeze(1).repeat(1, self.num_ws, 1)  # [N, num_ws, w_dim]
        if truncation_psi != 1:
            # w' = w_avg + psi * (w - w_avg) (StyleGAN, appendix B)
            truncated = self.w_avg.lerp(ws[:, :truncation_cutoff], truncation_psi)
            ws = torch.cat([truncated, ws[:, truncated.shape[1] :]], dim=1)
        return ws
