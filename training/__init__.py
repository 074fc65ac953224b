"""The base: data, networks, losses and the loop of a StyleGAN2-ADA-shaped trainer. Never imports the plugin."""

import torch_utils  # noqa: F401  its settings must precede torch
