"""Every option has a control, whose value is read back as the option it shows. Needs Gradio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

gr = pytest.importorskip("gradio")

from mpdit_playground import controls as controls_module  # noqa: E402
from mpdit_playground.command import PlaygroundOptions  # noqa: E402
from mpdit_playground.controls import RequestControls, control, label  # noqa: E402
from mpdit_playground.session import Playground  # noqa: E402
from sample_helpers import write_model  # noqa: E402

from mpdit_core import plugins  # noqa: E402
from mpdit_core.api import option  # noqa: E402
from mpdit_core.errors import UserError  # noqa: E402
from mpdit_core.samplers.euler import Euler  # noqa: E402
from mpdit_core.sampling import SamplingOptions  # noqa: E402
from mpdit_core.settings import spelling_of  # noqa: E402

START: dict[str, Any] = {
    "classes": "goldfish,two", "sampler": "euler-maruyama", "sampler_options": {"grid": "karras", "rho": 5.0},
    "guidance": "apg", "guidance_options": {"eta": 0.5}, "guidance_interval": (0.1, 0.8), "num_steps": 12,
    "seed": 4, "batch_size": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def playground(tmp_path_factory) -> Playground:
    model = write_model(tmp_path_factory.mktemp("models") / "a").path
    return Playground(PlaygroundOptions(models=(str(model),), device="cpu", **START))


def laid_out(playground: Playground) -> RequestControls:
    with gr.Blocks():
        return RequestControls(playground)


def values(controls: RequestControls, **changes) -> list[Any]:
    return [changes.get(component.elem_id, component.value) for component in controls.components]


def test_the_page_begins_with_the_options_given(playground):
    controls = laid_out(playground)
    read = controls.read(values(controls))
    assert read.options == SamplingOptions(**{**START, "classes": (5, 2)})
    assert read.num_samples == playground.options.num_samples


def test_every_option_of_sampling_has_a_control(playground):
    controls = laid_out(playground)
    wanted = {name for name, f in SamplingOptions.model_fields.items() if spelling_of(f).panel == "Sampling"}
    assert wanted == {*controls.fields, "classes", "sampler"}


def test_a_request_is_shown_again_as_it_was(playground):
    controls = laid_out(playground)
    changed = {"sampler": "heun", "num_samples": 3, "which": "random", "compare": "seed", "values": "1,2"}
    changed |= {
        "option-num_steps": "9",
        "option-seed": 2,
        "option-guidance": "cfg-zero",
        "option-guidance.zero_init": 0.1,
    }
    asked = controls.read(values(controls, **changed))
    assert (asked.options.sampler, asked.options.num_steps, asked.compare) == ("heun", 9, "seed=1,2")
    assert (asked.options.guidance, asked.options.guidance_options) == ("cfg-zero", {"zero_init": 0.1})
    pairs = zip(controls.updates(asked), controls.components, strict=True)
    shown = [u.get("value", c.value) if isinstance(u, dict) else u for u, c in pairs]
    assert controls.read(shown) == asked


def test_options_of_a_new_sampler_appear(playground, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Mine(Euler):
        """Mine."""

        flavour: Literal["sweet", "sour"] = option("sweet", "what it tastes of")

    load = plugins.load
    monkeypatch.setattr(controls_module.plugins, "load", lambda k, name: Mine if name == "mine" else load(k, name))
    monkeypatch.setattr(playground, "samplers", [*playground.samplers, "mine"])
    samplers = laid_out(playground).samplers
    flavour = samplers.options["mine"]["flavour"]
    assert flavour.control.component.info == "What it tastes of"
    assert not flavour.control.component.visible
    assert samplers.options["mine"]["grid"] is samplers.options["euler"]["grid"]
    assert samplers.read("mine", {c._id: c.value for c in samplers.components})["grid"] == "karras"


def test_visibility_follows_the_choice(playground):
    controls = laid_out(playground)
    for table in (controls.samplers, controls.rules):
        for name, options in table.options.items():
            assert sum(update["visible"] for update in table.visibility(name)) == len(options)


def test_a_model_without_classes_has_no_control_for_them(playground, monkeypatch):
    (generator,) = playground.generators.values()
    config = generator.folder.config
    bare = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 0})})
    monkeypatch.setattr(generator, "folder", generator.folder.model_copy(update={"config": bare}))
    monkeypatch.setattr(playground, "start", playground.start.model_copy(update={"classes": "all"}))
    controls = laid_out(playground)
    assert not controls.which.visible
    assert not controls.classes.visible
    assert "classes" not in [name for name, _ in controls.compare.choices]
    assert controls.read(values(controls)).options.classes == "all"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"classes": []}, "no-such-class"),
        ({"num_samples": 0}, "invalid-value"),
        ({"option-seed": 1.5}, "invalid-value"),
    ],
)
def test_wrong_values_are_refused(playground, changes, code):
    controls = laid_out(playground)
    with pytest.raises(UserError) as caught:
        controls.read(values(controls, **changes))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("kind", "value", "typed", "read"),
    [
        (int, 3, 4.0, 4),
        (float, 3.0, 4, 4.0),
        (float | None, None, "", None),
        (float | None, None, "2", 2.0),
        (bool, True, False, False),
        (Literal["a", "b"], "a", "b", "b"),
        (Literal["a", "b"] | None, None, "", None),
        (tuple[int, ...], (1, 2), "[3, 4]", [3, 4]),
        (str, "x", "y z", "y z"),
    ],
)  # fmt: skip
def test_types(kind, value, typed, read):
    with gr.Blocks():
        made = control("name", kind, value, "words")
    assert made.read(typed) == read


def test_labels():
    assert label("num_steps") == "Number of steps"
    assert label("sampler.grid") == "Grid"
