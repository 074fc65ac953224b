"""How far apart two sets of features are. Knows tensors of features [N, D], neither images' origin nor GANs."""
