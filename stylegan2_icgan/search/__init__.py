"""Ways to find nearest neighbours; `stylegan2_icgan.neighbours` is their door."""
