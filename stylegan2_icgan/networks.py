"""StyleGAN2 conditioned on an instance, a class, both or nothing (IC-GAN, arXiv 2109.05070, section 2).

Only the embedding of the condition differs from the base networks: the projected instance features take the place of
the embedded label in both mapping networks, or stand beside it.
"""

from functools import partial

import torch
from torch import Tensor

from training.networks import stylegan2, stylegan2_discriminator
from training.networks.layers import FullyConnectedLayer
from training.networks.mapping import MappingNetwork
from training.networks.pyramid import Kwargs


class InstanceMappingNetwork(MappingNetwork):
    """z, labels and instance features -> ws. The embeddings of c and h are joined, then normalised as one."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        h_dim: int = 0,  # width of the instance features; 0: none
        num_layers: int = 8,
        embed_features: int | None = None,  # width of the embeddings of c and of h; None: w_dim
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.995,
    ) -> None:
        embed_features = w_dim if embed_features is None else embed_features
        super().__init__(
            z_dim,
            c_dim,
            w_dim,
            num_ws,
            num_layers=num_layers,
            embed_features=embed_features,
            layer_features=layer_features,
            activation=activation,
            lr_multiplier=lr_multiplier,
            w_avg_beta=w_avg_beta,
            cond_features=embed_features * ((c_dim > 0) + (h_dim > 0)),
        )
        self.h_dim = h_dim
        if h_dim > 0:
            self.embed_feats = FullyConnectedLayer(h_dim, embed_features)

    def embed_condition(self, c: Tensor | None, h: Tensor | None) -> Tensor | None:
        label = super().embed_condition(c, h)  # [N, embed_features] or None
        if self.h_dim == 0:
            return label
        instance = self.embed_feats(h.float())  # [N, embed_features]
        return instance if label is None else torch.cat([label, instance], dim=1)


class Generator(stylegan2.Generator):
    """The base generator with instance features; `h_dim` 0 is the base generator."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        h_dim: int = 0,
        mapping_kwargs: Kwargs | None = None,
        synthesis_kwargs: Kwargs | None = None,
    ) -> None:
        super().__init__(
            z_dim,
            c_dim,
            w_dim,
            img_resolution,
            img_channels,
            mapping_kwargs=mapping_kwargs,
            synthesis_kwargs=synthesis_kwargs,
            mapping_network=partial(InstanceMappingNetwork, h_dim=h_dim),
        )


class Discriminator(stylegan2_discriminator.Discriminator):
    """The base discriminator with instance features; `h_dim` 0 is the base discriminator."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        h_dim: int = 0,
        architecture: str = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        low_dtype: torch.dtype = torch.float16,
        conv_clamp: float | None = None,
        cmap_dim: int | None = None,
        mapping_kwargs: Kwargs | None = None,
        block_kwargs: Kwargs | None = None,
        epilogue_kwargs: Kwargs | None = None,
    ) -> None:
        super().__init__(
            c_dim,
            img_resolution,
            img_channels,
            architecture=architecture,
            channel_base=channel_base,
            channel_max=channel_max,
            num_fp16_res=num_fp16_res,
            low_dtype=low_dtype,
            conv_clamp=conv_clamp,
            cmap_dim=cmap_dim,
            mapping_kwargs=mapping_kwargs,
            block_kwargs=block_kwargs,
            epilogue_kwargs=epilogue_kwargs,
            mapping_network=partial(InstanceMappingNetwork, h_dim=h_dim) if h_dim > 0 else None,
        )
