"""Image operations of the StyleGAN2 networks, each in a module of its own name."""
