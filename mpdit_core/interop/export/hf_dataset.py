"""Encoded latents as a Hugging Face data set: Parquet files that `datasets.load_dataset(FOLDER)` reads.

Columns: the tensors of the shards under their own names, and `label` where images have classes. Depending on the
autoencoder the tensors are `moments` float16 [2C, h, w] (posterior mean, then standard deviation), `mean` float16
[C, h, w], or `pixels` uint8 [C, H, W]; stored mirror images have the same name with `_flipped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpdit_core.data.latents import LatentFolder
from mpdit_core.interop.export.card import public_source
from mpdit_core.interop.export.markdown import render

TEMPLATE = Path(__file__).with_name("dataset.md.j2")
LABELS = "labels"


def write_dataset(folder: LatentFolder, out: Path) -> Iterator[int]:
    """Writes one Parquet file per shard, and a README.md; yields the number of images written so far."""
    from datasets import Array3D, ClassLabel, Dataset, Features

    (out / "data").mkdir(parents=True)
    spec, shards, done = folder.spec, len(folder.manifest.shards), 0
    arrays = {
        name: Array3D(shape=tensor.shape[1:], dtype=tensor.dtype.name)
        for name, tensor in folder.shard(0).items()
        if name != LABELS
    }
    label = {"label": ClassLabel(names=list(spec.class_names))} if spec.class_names else {}
    features = Features({**arrays, **label})
    for number in range(shards):
        tensors = folder.shard(number)
        columns = {name: list(np.asarray(tensors[name])) for name in arrays}
        if label:
            columns["label"] = tensors[LABELS].tolist()
        part = Dataset.from_dict(columns, features=features)
        part.to_parquet(str(out / "data" / f"train-{number:05d}-of-{shards:05d}.parquet"))
        done += len(part)
        folder.hashes.raise_fault()
        yield done
    folder.hashes.wait()
    card = render(
        TEMPLATE,
        count=len(folder),
        resolution=spec.resolution,
        autoencoder=public_source(spec.autoencoder.id),
        columns=arrays,
        normalisation=spec.normalisation,
    )
    (out / "README.md").write_text(card, encoding="utf-8")
