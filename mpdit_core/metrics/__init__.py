"""Distances and scores of images. Nothing here depends on mpdit's files or commands.

    features.py      images → feature vectors: the Inception network of FID, or a plugin's
    statistics.py    mean and covariance of a stream of feature vectors
    accumulator.py   all that the metrics need, collected in one pass over the images
    scores.py        Fréchet distance, Inception Score, kernel distance
    neighbours.py    precision and recall
    similarity.py    PSNR and SSIM of pairs of images

To add a metric: a row in `METRICS` of mpdit_core/evaluation/options.py, and the function that it names, in
metric_values.py there or in another file, with a test against an independent formula.
"""
