"""Encoded latents as a Hugging Face data set: Parquet files that `datasets.load_dataset(FOLDER)` reads.

Columns: `moments` float16 [2C, h, w] (posterior mean, then standard deviation), `moments_flipped` of the mirror image
where the folder stores it, and `label`, with the class names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mpdit_core.data.latents import LatentFolder


def dataset_features(folder: LatentFolder) -> Any:
    from datasets import Array3D, ClassLabel, Features

    moments = Array3D(shape=folder.manifest.plan.moments_shape, dtype="float16")
    flipped = {"moments_flipped": moments} if folder.manifest.plan.flip else {}
    return Features({"moments": moments, **flipped, "label": ClassLabel(names=list(folder.manifest.class_names))})


def write_dataset(folder: LatentFolder, out: Path) -> Iterator[int]:
    """Writes one Parquet file a shard, and a README.md; yields the number of images written so far."""
    from datasets import Dataset

    (out / "data").mkdir(parents=True)
    features, shards, done = dataset_features(folder), folder.manifest.shards, 0
    for number in range(len(shards)):
        tensors = folder.shard(number)
        columns = {n: list(np.asarray(t)) for n, t in tensors.items() if n.startswith("moments")}
        columns["label"] = tensors["labels"].tolist()
        part = Dataset.from_dict(columns, features=features)
        part.to_parquet(str(out / "data" / f"train-{number:05d}-of-{len(shards):05d}.parquet"))
        done += len(part)
        yield done
    spec = folder.spec
    (out / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: data/train-*.parquet\n---\n\n# Latents\n\n"
        f"{len(folder):,} images of {spec.resolution} px, encoded by {spec.autoencoder.id}. `moments` are posterior "
        f"mean and standard deviation; a draw is standardised with mean {list(spec.normalisation.mean)} and std "
        f"{list(spec.normalisation.std)} ({spec.normalisation.name}).\n",
        encoding="utf-8",
    )
