"""What the scripts that use a trained model share: generate, style_mixing, interpolate, directions."""
