"""Any text after `--set` or in a TOML file is accepted, or refused by a user error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from mpdit_core import presets
from mpdit_core.config import RunConfig
from mpdit_core.errors import UserError
from mpdit_core.model.memory import require_fit
from mpdit_core.settings import dotted_keys, parse_assignments, read_toml, to_toml
from mpdit_core.training.estimate import estimate

KEYS = dotted_keys(RunConfig)
EXTREME = [
    "0", "-1", "1", "1e999", "-inf", "nan", "1e-999", "9" * 30, "9" * 5000, "0x" + "f" * 9000, str(2**63), str(2**62),
    "[" * 40 + "]" * 40, "[" * 5000 + "]" * 5000, "[1, 1]", "[1.0, 1.0]", "[[4, 1000000000], [2, 1]]", "[[4, 2, 1]]",
    "{a = 1}", "{" + "a={" * 30 + "}" * 31, "true", "", " ", "=", "1979-05-27", "\udcff", "\x1b[31m", "\x00",
    "[[1073741824, 1]]", "1\nother = 2", '"fsdp"', "[]", "'x'",
]  # fmt: skip


def dry_run(assignments: list[str]) -> RunConfig:
    """What `train --dry-run` does with `--set`, before it looks at latents."""
    config = presets.layers(preset="tiny", settings=parse_assignments(assignments)).config()
    require_fit(config.model)
    assert estimate(config, total_steps=10).memory_bytes > 0
    assert to_toml(config)
    return config


def refused(assignment: str) -> str:
    with pytest.raises(UserError) as error:
        dry_run([assignment])
    text = str(error.value)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert len(text) < 2000
    return error.value.code


@pytest.mark.parametrize("value", EXTREME, ids=range(len(EXTREME)))
def test_extreme_values_of_every_key(value: str):
    for key in [*KEYS, "model", "train", "model.width.more", ".".join("a" * 2000)]:
        with contextlib.suppress(UserError):
            dry_run([f"{key}={value}"])


@seed(15)
@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.builds("{}={}".format, st.sampled_from(KEYS) | st.text(max_size=8), st.sampled_from(EXTREME) | st.text()),
        max_size=3,
    )
)
def test_anything_typed_is_taken_or_refused(assignments: list[str]):
    with contextlib.suppress(UserError):
        dry_run(assignments)


@pytest.mark.parametrize(
    ("assignment", "code"),
    [
        ("train.optimizer.betas=[0.9, 1.0]", "invalid-value"),
        ("train.ema_decays=[1.0]", "invalid-value"),
        ("train.learning_rate=inf", "invalid-value"),
        ("train.optimizer.weight_decay=nan", "invalid-value"),
        ("train.seed=" + "9" * 5000, "invalid-value"),
        ("train.seed=\x1b[31m\udcff", "invalid-value"),
        ("model.width=1000000000000", "too-large"),
        ("model.num_classes=1000000000000", "too-large"),
        ("model.stages=[[4, 1000000000]]", "too-large"),
        ("model.time_embedding=none", "invalid-value"),
        ("objective.time_density=uniform", "invalid-value"),  # a term is a table
        (".".join("a" * 2000) + "=1", "invalid-value"),
    ],
)
def test_what_cannot_be_is_refused_with_a_code(assignment: str, code: str):
    assert refused(assignment) == code


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 5000 + "]" * 5000, "a = [" + "[" * 30, "\x00"])
def test_a_hostile_toml_file(tmp_path, text: str):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError):
        read_toml(tmp_path / "a.toml")
