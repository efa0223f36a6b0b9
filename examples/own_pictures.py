"""Your own pictures from end to end: `python examples/own_pictures.py photos/`.

`photos/` holds one folder per class, or images without classes. Everything is written to ./own/, and a second call
resumes the first one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mpdit_core import encode_latents, evaluate, sample, train
from mpdit_core.encoding import EncodeOptions
from mpdit_core.evaluation import EvaluateOptions
from mpdit_core.reporting import Event, Step, Warning
from mpdit_core.sampling import SampleOptions
from mpdit_core.training import TrainOptions


def show(event: Event) -> None:
    """Prints the steps and warnings of a job, and no other event."""
    if isinstance(event, Step):
        print(
            f"step {event.step} of {event.total_steps}, loss {event.loss:.3f}, {event.images_per_second:.0f} images/s"
        )
    elif isinstance(event, Warning):
        print(f"{event.code}: {event.text}")


def main(photos: str, *, steps: int = 2000, num_samples: int = 64, settings: dict[str, Any] | None = None) -> None:
    """`settings` are those that `mpdit train --set` takes, as nested dictionaries."""
    own = Path("own")
    encoded = encode_latents(
        EncodeOptions(source=photos, resolution=32, autoencoder="pixels", out=own / "latents"), report=show
    )
    trained = train(
        TrainOptions(latents=encoded.latents, run=own / "run", steps=steps, settings=settings or {}), report=show
    )
    sampled = sample(
        SampleOptions(model=str(trained.run), out=own / "samples", num_samples=num_samples, num_steps=25), report=show
    )
    print(f"{sampled.images} images in {sampled.samples}")

    # A Fréchet distance of pixels (package mpdit-digits), without a download. The features "inception" give the FID.
    record = evaluate(
        EvaluateOptions(what=str(sampled.samples), features="digits-pixels", reference=photos, metrics=("fid",)),
        report=show,
    )
    print(record.metrics, f"of {record.count} samples")


if __name__ == "__main__":
    main(sys.argv[1])
