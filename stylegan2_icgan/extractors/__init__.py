"""How an image becomes a feature; `stylegan2_icgan.features` is their table."""
