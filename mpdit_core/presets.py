"""The named configurations, one row per model, and how the configuration of a run is made from one.

To add one: a row in `MODELS`, then `mpdit profile-flops --markdown docs/compute.md`. Sizes and optimisation are those
of the MPDiT paper (arXiv 2603.26357, section 4 and its appendix) and of DiT (arXiv 2212.09748, table 1) unless a
comment says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mpdit_core.config import Layers, ModelConfig, PreviewConfig, RunConfig, Stage, TrainConfig
from mpdit_core.errors import UserError, did_you_mean
from mpdit_core.settings import read_toml
from mpdit_core.size import Size

# The paper's switches, changed one after the other as in the rows of the paper's ablation.
DENSE = dict(modulation="per-block", class_tokens=0, time_embedding="sinusoid")
SHARED = dict(modulation="shared", class_tokens=0, time_embedding="sinusoid")
TOKENS = dict(modulation="shared", class_tokens=16, time_embedding="sinusoid")
MPDIT = dict(modulation="shared", class_tokens=16, time_embedding="fno")
# LightningDiT's backbone (arXiv 2501.01423, section on architecture): SwiGLU, RMSNorm, and RoPE beside the position
# table. Its QK norm is optional, for long training in bfloat16: `--set model.qk_norm=true`.
PLUS = MPDIT | dict(mlp="swiglu", norm="rms", positions="both")
DIGITS = MPDIT | dict(input_size=16, channels=1, num_classes=10, spectral_init_scale=1 / 32)

# name: pixels, width, heads, stages (patch size, depth), switches, recipe
MODELS: dict[str, tuple[int, int, int, list[tuple[int, int]], dict[str, Any], str]] = {
    "b-256":             (256,   768, 12, [(4, 6), (2, 6)],            MPDIT,  "256"),
    "l-256":             (256,  1024, 16, [(4, 18), (2, 6)],           MPDIT,  "256"),
    "xl-256":            (256,  1152, 16, [(4, 22), (2, 6)],           MPDIT,  "256-long"),
    "xl-512":            (512,  1152, 16, [(4, 22), (2, 6)],           MPDIT,  "512"),
    "v2-b-512":          (512,   768, 12, [(8, 6), (4, 4), (2, 2)],    MPDIT,  "512"),
    "v2-l-512":          (512,  1024, 16, [(8, 14), (4, 6), (2, 4)],   MPDIT,  "512"),
    "v2-xl-512":         (512,  1152, 16, [(8, 14), (4, 8), (2, 6)],   MPDIT,  "512"),
    "xl-1024":           (1024, 1152, 16, [(8, 14), (4, 8), (2, 6)],   MPDIT,  "512"),
    "plus-b-256":        (256,   768, 12, [(4, 6), (2, 6)],            PLUS,   "256"),
    "plus-l-256":        (256,  1024, 16, [(4, 18), (2, 6)],           PLUS,   "256"),
    "plus-xl-256":       (256,  1152, 16, [(4, 22), (2, 6)],           PLUS,   "256-long"),
    "plus-xl-512":       (512,  1152, 16, [(4, 22), (2, 6)],           PLUS,   "512"),
    # For your own pictures, with the width of DiT-S. The first two are for pixels, with the blocks and tokens of
    # MPDiT-B at 256 px. `propose_preset` fits them to latents of any size.
    "s-32":              (32,    384,  6, [(4, 6), (2, 6)],  MPDIT | dict(input_size=32, channels=3), "small"),
    "s-64":              (64,    384,  6, [(8, 6), (4, 6)],  MPDIT | dict(input_size=64, channels=3), "small"),
    # The three stages of v2-B at half its width: an eighth of b-256's compute.
    "s-256":             (256,   384,  6, [(8, 6), (4, 4), (2, 2)],    MPDIT,  "small"),
    "dit-s-256":         (256,   384,  6, [(2, 12)],                   DENSE,  "256"),
    "dit-b-256":         (256,   768, 12, [(2, 12)],                   DENSE,  "256"),
    "dit-l-256":         (256,  1024, 16, [(2, 24)],                   DENSE,  "256"),
    "dit-xl-256":        (256,  1152, 16, [(2, 28)],                   DENSE,  "256"),
    "dit-xl-512":        (512,  1152, 16, [(2, 28)],                   DENSE,  "512"),
    "ablation-b-dense":  (256,   768, 12, [(2, 12)],                   DENSE,  "256"),
    "ablation-b-shared": (256,   768, 12, [(2, 12)],                   SHARED, "256"),
    "ablation-b-tokens": (256,   768, 12, [(2, 12)],                   TOKENS, "256"),
    "ablation-b-fno":    (256,   768, 12, [(2, 12)],                   MPDIT,  "256"),
    "ablation-b-k4":     (256,   768, 12, [(4, 8), (2, 4)],            MPDIT,  "256"),
    "ablation-b-k8":     (256,   768, 12, [(4, 4), (2, 8)],            MPDIT,  "256"),
    # The demo (scikit-learn's 8×8 digits at 16×16, trained in minutes on two cores), and the smallest model, for tests.
    "digits":            (16,     64,  4, [(4, 2), (2, 2)],            DIGITS | dict(class_tokens=4), "digits"),
    "tiny":              (16,     32,  2, [(4, 1), (2, 1)],            DIGITS | dict(class_tokens=2), "tiny"),
}  # fmt: skip

# Epochs, global batch, learning rate (paper, appendix; the 512 recipe also serves 1024, for which none is published).
# The others are our own; "small" is for one GPU and any number of images, with `--steps` for fewer steps on a CPU.
RECIPES = {
    "256":      dict(train=TrainConfig(epochs=80,  batch_size=1024, learning_rate=2e-4)),
    "256-long": dict(train=TrainConfig(epochs=240, batch_size=1024, learning_rate=2e-4)),
    "512":      dict(train=TrainConfig(epochs=120, batch_size=256,  learning_rate=1e-4)),
    "small": dict(
        train=TrainConfig(
            steps=20_000, batch_size=64, learning_rate=3e-4, schedule="cosine", warmup_steps=500, grad_clip=1.0,
            ema_decays=(0.999,), checkpoint_every=1000,
        ),
        preview=PreviewConfig(every=1000, num_images=20, num_steps=25, guidance_scale=1.5),
    ),
    "digits": dict(
        train=TrainConfig(
            steps=1200, batch_size=64, learning_rate=4e-3, schedule="cosine", warmup_steps=50, grad_clip=1.0,
            ema_decays=(0.99,), checkpoint_every=400, flip=False,
        ),
        preview=PreviewConfig(every=300, num_images=20, num_steps=25, guidance_scale=1.5),
    ),
    "tiny": dict(
        train=TrainConfig(
            steps=8, batch_size=8, learning_rate=1e-3, ema_decays=(0.99,), log_every=1, checkpoint_every=4
        ),
        preview=PreviewConfig(every=4, num_images=4, num_steps=2, guidance_scale=1.5),
    ),
}  # fmt: skip

LATENT_FACTOR = 8  # pixels per latent pixel along a side, of the Stable Diffusion autoencoder of all published models


def preset_names() -> list[str]:
    return list(MODELS)


def load_preset(name: str) -> RunConfig:
    """The preset `name`. Raises `UserError` (`no-such-preset`) with the most similar names if there is none."""
    if name not in MODELS:
        raise UserError(
            f"there is no preset {name!r}",
            code="no-such-preset",
            expected=", ".join(preset_names()),
            remedy=did_you_mean(name, preset_names(), otherwise="`mpdit profile-flops` lists all presets"),
        )
    resolution, width, heads, stages, switches, recipe = MODELS[name]
    return RunConfig(
        preset=name,
        resolution=Size.square(resolution),
        model=ModelConfig(
            width=width,
            num_heads=heads,
            stages=tuple(Stage(*stage) for stage in stages),
            **{"input_size": resolution // LATENT_FACTOR, **switches},
        ),
        **RECIPES[recipe],
    )


NOT_PROPOSED = ("dit-", "ablation-", "plus-", "tiny")
"""Beginnings of the names of presets for comparisons, experiments and tests, which `propose_preset` leaves out."""

FOR_OWN_PICTURES = "s-"  # beginning of the names of presets that may be fitted to latents of other sizes

IMAGES_FOR_THE_LARGEST = 1_000_000  # our choice: the paper trains its largest model on ImageNet's 1.28 million


class Proposal(NamedTuple):
    """A preset to train with, and the tree of values that fit it to the latents (empty if it fits unchanged)."""

    preset: str
    fit: dict[str, Any]


def propose_preset(*, resolution: Size, latent_shape: tuple[int, int, int], images: int) -> Proposal:
    """The preset for training on latents [C, h, w]: the smallest that fits; for a million images or more, the largest.

    A preset fits if it has this resolution, C, h and w. If none does, the one with the nearest area is changed to fit:
    it gets patches that cut the latents into about as many tokens as before. A run takes C, h, w and the number of
    classes from its latents.
    """
    channels, *size = latent_shape
    latent_size, many = Size(*size), images >= IMAGES_FOR_THE_LARGEST
    presets = [load_preset(name) for name in preset_names() if not name.startswith(NOT_PROPOSED)]

    def cost(preset: RunConfig) -> int:
        return preset.model.width**2 * preset.model.depth * (-1 if many else 1)

    own = (resolution, channels, latent_size)
    exact = [p for p in presets if (p.resolution, p.model.channels, p.model.input_size) == own]
    if exact:
        return Proposal(min(exact, key=cost).preset, {})
    others = [p for p in presets if many or p.preset.startswith(FOR_OWN_PICTURES)]
    nearest = min(others, key=lambda p: (abs(math.log(p.resolution.area / resolution.area)), cost(p)))
    scale = math.sqrt(latent_size.area / nearest.model.input_size.area)
    stages = fit_stages(nearest.model.stages, scale=scale, side=math.gcd(*latent_size))
    fit: dict[str, Any] = {} if resolution == nearest.resolution else {"resolution": resolution.plain()}
    if stages != nearest.model.stages:
        fit["model"] = {"input_size": latent_size.plain(), "stages": [list(stage) for stage in stages]}
    return Proposal(nearest.preset, fit)


def fit_stages(stages: tuple[Stage, ...], *, scale: float, side: int) -> tuple[Stage, ...]:
    """`stages` with patch sizes `scale` times as large, or the nearest sizes that divide `side` and each other.

    If there is no coarser patch size, the blocks of a stage join the next finer stage.
    """
    found: list[Stage] = []
    for stage in reversed(stages):  # from fine to coarse
        finer = found[0].patch_size if found else 0
        possible = [p for p in range(finer + 1, side + 1) if side % p == 0 and (not finer or p % finer == 0)]
        if possible:
            nearest = min(possible, key=lambda p: abs(math.log(p / (stage.patch_size * scale))))
            found.insert(0, Stage(nearest, stage.depth))
        else:
            found[0] = Stage(finer, found[0].depth + stage.depth)
    return tuple(found)


def layers(
    *,
    base: Layers | None = None,
    preset: str | None = None,
    fit: Mapping[str, Any] | None = None,
    file: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Layers:
    """The layers of a run's configuration: base < preset < fit < file < settings.

    Args:
        base: the layers of the run that is resumed; preset and file are then not needed.
        preset: the name of one; by default the `preset` in the file.
        fit: a tree of values that fit the preset to the latents.
        file: a TOML file.
        settings: the tree of values that `--set` gave.
    """
    from_file = read_toml(file) if file else {}
    preset = preset or str(from_file.get("preset", "custom"))
    found = base or Layers()
    if preset != "custom":
        found = found.over(load_preset(preset).model_dump(), f"preset {preset}").over(fit or {}, "latents")
    return found.over(from_file, str(file), fixed=True).over(settings or {}, "--set", fixed=True)
