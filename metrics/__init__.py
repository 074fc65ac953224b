"""How far apart two sets of images are, and what else can be measured of them. Knows iterables of images and features.

arithmetic   feature_stats frechet kernel_distance inception_score distances precision_recall path_length
             instance_metrics
images       resizing detectors inception lpips image_sets
names        metric_names (what `fid50k_full` means) evaluation (what it takes) compute reference_cache records plot
pairs        paired (how far translated images are from those they should be)
"""
