"""The way back: from an image to the styles w that a StyleGAN2 generator makes it of (arXiv 1912.04958, appendix D)."""
