"""Whether a run is normal: its loss against recorded runs, its FID against published ones, each in one sentence."""

from __future__ import annotations

import math
from statistics import fmean

import torch

from mpdit_core.config import RunConfig
from mpdit_core.data.manifest import LatentSpec
from mpdit_core.flow.times import draw_times
from mpdit_core.run_report.bands import band_for, windowed
from mpdit_core.run_report.options import Place, Verdict
from mpdit_core.run_report.published import by_adm_protocol, plain_flow_matching, published_for
from mpdit_core.run_report.run import MEAN_STEPS, Run

SIMILAR = 0.05  # share by which an FID may differ from a published one by sampler, precision and chance
TIMES = 4096  # over which a mean over the times of training is taken
MEANING = {"above": "it learns more slowly", "below": "it learns faster"}


def verdicts_on(run: Run) -> tuple[Verdict, ...]:
    """The verdicts on the run's loss, if it was ever finite, and on its FID, if it was measured."""
    found = [_of_loss(run) if "loss" in run.history.series else None, _of_fid(run)]
    return tuple(verdict for verdict in found if verdict)


def _of_loss(run: Run) -> Verdict:
    """The mean loss of the last window that the run and a band have, or the comparison with a bound for any network."""
    band = band_for(run.config, run.latents)
    if band is None:
        return _against_rescaling(run, why="no runs of this network, loss and latents were recorded")
    losses = windowed(run.losses_by_images(), band.images_seen)
    seen = run.history.last["images_seen"]
    both = [n for n, end in enumerate(band.images_seen) if end <= seen and 2 * len(losses[n]) >= band.logged]
    if not both:
        first = f"too few losses were logged until image {band.images_seen[0]:,}"
        return _against_rescaling(run, why=f"{first} to compare them with recorded runs")
    window = both[-1]
    loss, (low, high) = fmean(losses[window]), band.limits(window)
    place = _place(loss, low, high)
    text = (
        f"{loss:.4f} after {band.images_seen[window]:,} images is {place} the band of {band.runs} recorded runs of "
        f"{band.what}, {low:.4f} to {high:.4f}"
    )
    differences = band.differences(run.config)
    others = ", ".join(f"{key} {theirs}, not {own}" for key, (theirs, own) in differences.items())
    if place in MEANING:
        text += f": {MEANING[place]} than they did"
        text += f" with {others}" if others else " with the same settings, so data, precision or code must differ"
    elif others:
        text += f"; they had {others}"
    return Verdict(quantity="loss", place=place, text=text)


def _against_rescaling(run: Run, *, why: str) -> Verdict:
    """The comparison with a bound for every network. `why`: why the run is not compared with recorded runs."""
    limit = loss_of_rescaling(run.config, run.latents)
    if limit is None:
        return Verdict(quantity="loss", place="unknown", text=f"{why}, and nothing is known of this loss in general")
    loss = run.history.recent_loss()
    below = loss < limit
    meaning = "is below that, as it should be" if below else "is not below that: nothing about the images is learnt yet"
    text = (
        f"{why}; any network begins near 2 and can reach {limit:.3f} by rescaling x_t; the mean of the last "
        f"{MEAN_STEPS} steps, {loss:.4f}, {meaning}"
    )
    return Verdict(quantity="loss", place="below" if below else "above", text=text)


def loss_of_rescaling(config: RunConfig, latents: LatentSpec) -> float | None:
    """The mean squared error of the best velocity that is a multiple of x_t, whatever the images are.

    Noise and standardised latents have mean square 1 and are not correlated, so that the zero velocity has the error 2,
    and the best multiple, `(2t - 1) / ((1 - t)² + t²)`, has the error `1 / ((1 - t)² + t²)` at time t.

    Returns:
        None for another loss, for latents that are not standardised, and for a network that does not begin with
        velocity 0.
    """
    if not plain_flow_matching(config) or latents.normalisation.name != "measured":
        return None
    if config.model.prediction != "velocity":
        return None
    uniforms = (torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES
    values = config.model.channels * config.model.input_size.area
    t = draw_times(config.time, uniforms, latent_values=values)
    return (1 / ((1 - t).square() + t.square())).mean().item()


def _of_fid(run: Run) -> Verdict | None:
    """The last FID, which falls during training: so it should be between those published for fewer and for more epochs.

    None where none was measured.
    """
    measured = [record for record in run.records if record.is_fid and record.distance]
    if not measured:
        return None
    published = published_for(run.config, run.latents)
    if not published:
        return Verdict(quantity="FID", place="unknown", text="none was published for this network, loss and latents")
    comparable = [record for record in measured if by_adm_protocol(record)]
    if not comparable:
        text = "not of 50,000 samples without guidance against ADM's statistics, as published ones are"
        return Verdict(quantity="FID", place="unknown", text=text)
    epochs = comparable[-1].step * run.config.train.batch_size / run.latents.count
    fid = comparable[-1].value("fid")
    assert isinstance(fid, float)
    reached = [each.value for each in published if each.epochs <= epochs * (1 + SIMILAR)]
    ahead = [each.value for each in published if each.epochs >= epochs * (1 - SIMILAR)]
    low = max(ahead, default=published[-1].value) * (1 - SIMILAR)
    high = min(reached, default=math.inf) * (1 + SIMILAR)
    place = _place(fid, low, high)
    listed = ", ".join(f"{each.value:g} after {each.epochs}" for each in published)
    sources = "; ".join(dict.fromkeys(each.source for each in published))
    words = "agrees with what" if place == "inside" else f"is {place} what"
    text = f"{fid:.2f} after {epochs:.0f} epochs {words} was published for this network: {listed} ({sources})"
    if place == "above":
        text += "; compare the normalisation of the latents, batch size, learning rate and EMA with the paper's"
    return Verdict(quantity="FID", place=place, text=text)


def _place(value: float, low: float, high: float) -> Place:
    if value < low:
        return "below"
    return "above" if value > high else "inside"
