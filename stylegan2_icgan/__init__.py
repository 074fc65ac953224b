"""Instance-conditional GAN (Casanova et al., NeurIPS 2021, arXiv 2109.05070) as a plugin of the base codebase."""

import torch_utils  # noqa: F401  its settings must precede torch
