"""The published recipes in recipes/: each is a configuration that can be trained, and says where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpdit_core import presets
from mpdit_core.flow.loss import build_terms, require_fit
from mpdit_core.model.compute import forward_macs

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_is_a_run_that_can_be_trained(recipe):
    config = presets.layers(file=recipe).config()
    terms = build_terms(config.objective, trusted=lambda _: False)
    require_fit(terms, config.model)
    assert forward_macs(config.model) > 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_says_its_source_its_figure_and_what_was_tried(recipe):
    text = recipe.read_text(encoding="utf-8")
    assert all(word in text for word in ("arXiv ", "# Latents:", "# Expected:", "# Tried:", "Not tried:"))


def test_there_are_recipes():
    assert len(RECIPES) >= 5
