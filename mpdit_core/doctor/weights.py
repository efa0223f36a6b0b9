"""Examines the weights that commands download: whether they are cached, or else can be downloaded."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from mpdit_core.doctor.options import Check, DoctorOptions
from mpdit_core.errors import UserError

SECONDS_TO_ANSWER = 3.0


def downloads(_: DoctorOptions) -> Iterator[Check]:
    """The Inception network for `eval-fid`, and the autoencoder for `encode-latents` and the published models."""
    yield _inception()
    yield _autoencoder()


def _inception() -> Check:
    from mpdit_core.metrics.features import published_weights

    name = "Inception (eval-fid)"
    try:
        weights = published_weights()
    except UserError as error:
        return Check(area="weights", name=name, status="fault", what=error.what, remedy=error.remedy or "")
    return _found(name, weights.path if weights.path.is_file() else None, weights.url, weights.remedy)


def _autoencoder() -> Check:
    from huggingface_hub import constants, hf_hub_url

    from mpdit_core.data.autoencoders import DEFAULT_AUTOENCODER, WEIGHTS
    from mpdit_core.runtime.hub import cached

    folder = cached(DEFAULT_AUTOENCODER, ["config.json", WEIGHTS])
    url = "" if constants.HF_HUB_OFFLINE else hf_hub_url(DEFAULT_AUTOENCODER, "config.json")
    remedy = (
        f"on a machine with internet access run `hf download {DEFAULT_AUTOENCODER}`, "
        "copy its cache here and set HF_HOME to it"
    )
    return _found(f"autoencoder {DEFAULT_AUTOENCODER}", folder, url, remedy)


def _found(name: str, place: Path | None, url: str, remedy: str) -> Check:
    """The check of weights that are at `place`, if it is given, or else at `url`; empty: downloads are turned off."""
    if place is not None:
        return Check(area="weights", name=name, what=f"cached at {place}")
    if url and answers(url):
        return Check(area="weights", name=name, status="note", what="not cached; downloaded when first needed")
    why = "their server does not answer" if url else "HF_HUB_OFFLINE is set"
    return Check(area="weights", name=name, status="fault", what=f"not cached, and {why}", remedy=remedy)


def answers(url: str) -> bool:
    """Whether there is a file at `url`; waits at most 2 · `SECONDS_TO_ANSWER`, because names may resolve slowly."""
    found: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "mpdit"})
            with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER):
                found.append(True)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * SECONDS_TO_ANSWER)
    return bool(found)
