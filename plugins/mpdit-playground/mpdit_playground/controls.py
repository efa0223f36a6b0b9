"""Fields of options classes and of samplers as Gradio components, so that a new option appears by itself.

To show a type in another way: a line in `_component`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gradio as gr

from mpdit_core import plugins
from mpdit_core.api import UserError
from mpdit_core.sampling import SamplingOptions
from mpdit_core.settings import parse_field, parse_value, spelling_of, validate
from mpdit_playground.session import Playground, Request

NONE = "—"  # in a list of choices


@dataclass(frozen=True, kw_only=True)
class Control:
    """A component, and how its value becomes the option's and back."""

    component: Any
    read: Callable[[Any], Any] = lambda value: value
    show: Callable[[Any], Any] = lambda value: value


def control(
    name: str, kind: Any, value: Any, info: str, *, empty: str = "", read_text: Callable[[str], Any] = parse_value
) -> Control:
    """The control for a value of type `kind`; text that `read_text` reads, where the type has no component of its own.

    Bounds are left to the option's own check, whose message says more.

    Args:
        empty: what an empty text stands for.
    """
    plain, optional = _plain(kind)
    shown: dict[str, Any] = {
        "label": label(name),
        "info": sentence(info),
        "elem_id": f"option-{name}",
        "min_width": 120,
    }
    if get_origin(plain) is Literal:
        choices = [*([(NONE, "")] if optional else []), *((word, word) for word in get_args(plain))]
        made = gr.Dropdown(choices, value=value or "", **shown)
        return Control(component=made, read=_none_if_empty, show=lambda v: v or "")
    if plain is bool and not optional:
        return Control(component=gr.Checkbox(value, **shown))
    if plain in (int, float) and not optional:  # an empty gr.Number would send 0
        made = gr.Number(value, step=1 if plain is int else 0.1, **shown)
        return Control(component=made, read=plain_number(plain))
    made = gr.Textbox(_as_text(value), max_lines=1, placeholder=empty, **shown)
    number = plain_number(plain)
    return Control(component=made, read=lambda t: number(read_text(t)) if t.strip() else None, show=_as_text)


def _plain(kind: Any) -> tuple[Any, bool]:
    """A type without None and annotations, and whether it may be None."""
    optional = False
    if get_origin(kind) in (typing.Union, types.UnionType):
        optional = type(None) in get_args(kind)
        kind = next(k for k in get_args(kind) if k is not type(None))
    return (get_args(kind)[0] if get_origin(kind) is typing.Annotated else kind), optional


def label(name: str) -> str:
    """`num_steps` → "Number of steps", `sampler.grid` → "Grid"."""
    text = name.rpartition(".")[2].replace("_", " ")
    text = f"number of {text.removeprefix('num ')}" if text.startswith("num ") else text
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def plain_number(kind: Any) -> Callable[[Any], Any]:
    """Makes whole numbers of what a browser sends for an int, and decimals for a float; leaves the rest as it is."""
    if kind is int:
        return lambda value: int(value) if isinstance(value, float) and value.is_integer() else value
    return lambda value: float(value) if kind is float and type(value) is int else value


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    return "" if value is None else str(value)


class SamplerControls:
    """The options of all samplers. One that several samplers declare alike is one control, and keeps its value."""

    def __init__(self, playground: Playground):
        self.controls: dict[str, dict[str, Control]] = {}  # sampler → option → control
        self.summaries: dict[str, str] = {}
        alike: dict[tuple[str, ...], Control] = {}
        start = playground.start
        for sampler in playground.samplers:
            try:
                loaded = plugins.load("samplers", sampler)
            except UserError:  # a broken plugin; `mpdit plugins` says why
                continue
            hints = get_type_hints(loaded)
            self.summaries[sampler] = (loaded.__doc__ or "").partition("\n\n")[0]
            self.controls[sampler] = {}
            for option in dataclasses.fields(loaded):
                if option.name == "num_steps" or not option.init:
                    continue
                key = tuple(map(repr, (option.name, hints[option.name], option.default, option.metadata)))
                if key not in alike:
                    value = start.sampler_options.get(option.name, _default(option))
                    description = option.metadata.get("description", "")
                    alike[key] = control(f"sampler.{option.name}", hints[option.name], value, description)
                self.controls[sampler][option.name] = alike[key]
        self.all = list(alike.values())
        for one in self.all:
            one.component.visible = one in self.of(start.sampler)

    def of(self, sampler: str) -> list[Control]:
        return list(self.controls.get(sampler, {}).values())

    def read(self, sampler: str, values: Mapping[int, Any]) -> dict[str, Any]:
        """The options that differ from the sampler's defaults. `values`: by id of the component."""
        found = {}
        defaults = {f.name: _default(f) for f in dataclasses.fields(plugins.load("samplers", sampler))}
        for name, one in self.controls.get(sampler, {}).items():
            value = one.read(values[one.component._id])
            if value != defaults[name]:
                found[name] = value
        return found

    def updates(self, sampler: str, options: Mapping[str, Any] | None = None) -> list[Any]:
        """What is visible for a sampler; and the values, where options are given."""
        shown = self.controls.get(sampler, {})
        names = {id(one): name for name, one in shown.items()}
        found = []
        for one in self.all:
            update: dict[str, Any] = {"visible": id(one) in names}
            if options is not None and id(one) in names and names[id(one)] in options:
                update["value"] = one.show(options[names[id(one)]])
            found.append(gr.update(**update))
        return found


def _default(option: dataclasses.Field) -> Any:
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return None if option.default is dataclasses.MISSING else option.default


class RequestControls:
    """All that a visitor can set: made where the page puts it, read into a `Request`, and set to one again."""

    def __init__(self, playground: Playground):
        self.playground, start = playground, playground.start
        models = list(playground.generators)
        names = playground.generators[models[0]].class_names
        with gr.Group():
            self.models = gr.Dropdown(
                models, value=models, multiselect=True, label="Models", visible=len(models) > 1,
                info="Side by side, from the same noise", elem_id="models",
            )  # fmt: skip
            which = start.classes if start.classes in ("all", "random") else "chosen"
            chosen = list(playground.generators[models[0]].labels.classes or ()) if which == "chosen" else []
            self.which = gr.Radio(
                [("All in turn", "all"), ("Random", "random"), ("Chosen", "chosen")], value=which,
                label="Classes", visible=bool(names), elem_id="which",
            )  # fmt: skip
            self.classes = gr.Dropdown(
                [(f"{name} ({i})", i) for i, name in enumerate(names)], value=chosen, multiselect=True,
                label="Chosen classes", info="Type to search; they are taken in turn",
                visible=bool(names) and which == "chosen", elem_id="classes", num_choices_shown=1000,
            )  # fmt: skip
            with gr.Row():
                self.num_samples = gr.Number(
                    playground.options.num_samples,
                    label="Number of images",
                    info="In every column",
                    step=1,
                    min_width=120,
                    elem_id="num_samples",
                )
                seed = self._field("seed")
        with gr.Group():
            self.sampler = gr.Dropdown(
                playground.samplers, value=start.sampler, label="Sampler", elem_id="sampler", info=" "
            )
            with gr.Row():
                first = {name: self._field(name) for name in ("num_steps", "guidance_scale")}
        with gr.Accordion("More options of sampling", open=False):
            self.samplers = SamplerControls(playground)
            special = {"classes", "sampler", "sampler_options", "guide", "seed", *first}
            rest = [n for n, f in SamplingOptions.model_fields.items() if spelling_of(f).panel == "Sampling"]
            others = {name: self._field(name) for name in rest if name not in special}
            guides = [(NONE, ""), *dict.fromkeys(g for g in (start.guide, *models) if g)]
            guide = gr.Dropdown(
                guides,
                value=start.guide or "",
                label="Guide",
                visible=len(guides) > 2,
                info=sentence(SamplingOptions.model_fields["guide"].description or ""),
            )
        self.fields: dict[str, Control] = {
            "seed": seed, **first, **others,
            "guide": Control(component=guide, read=_none_if_empty, show=lambda v: v or ""),
        }  # fmt: skip
        with gr.Accordion("Compare settings", open=False):
            sweepable = [n for n, f in SamplingOptions.model_fields.items() if spelling_of(f).sweepable]
            inner = dict.fromkeys(f"sampler.{n}" for kind in self.samplers.controls.values() for n in kind)
            keys = [n for n in sweepable if n not in ("guide", "sampler_options") and (names or n != "classes")]
            self.compare = gr.Dropdown(
                [(NONE, ""), *keys, *inner], value="", label="Option to vary", elem_id="compare",
                info="One column for each value, from the same noise",
            )  # fmt: skip
            self.values = gr.Textbox(
                label="Its values", placeholder="1, 1.5, 2", max_lines=1, elem_id="values",
                info="With commas between them; with ; between pairs",
            )  # fmt: skip

    def _field(self, name: str) -> Control:
        field = SamplingOptions.model_fields[name]
        return control(
            name,
            field.annotation,
            getattr(self.playground.start, name),
            field.description or "",
            empty=spelling_of(field).chosen,
            read_text=lambda text: parse_field(SamplingOptions, name, text),
        )

    @property
    def components(self) -> list[Any]:
        own = [self.models, self.which, self.classes, self.num_samples, self.sampler, self.compare, self.values]
        return own + [c.component for c in (*self.fields.values(), *self.samplers.all)]

    def read(self, values: Sequence[Any]) -> Request:
        """Raises `UserError` for what cannot be."""
        by_id = {component._id: value for component, value in zip(self.components, values, strict=True)}
        given = lambda component: by_id[component._id]  # noqa: E731 - a short name for what follows
        which, sampler, number = given(self.which), given(self.sampler), plain_number(int)(given(self.num_samples))
        if which == "chosen" and not given(self.classes):
            raise UserError("no class is chosen", code="no-such-class", expected="one or more, or All in turn")
        if not isinstance(number, int) or number < 1:
            raise UserError(f"{number} images", code="invalid-value", expected="a whole number of at least 1")
        options = {name: one.read(given(one.component)) for name, one in self.fields.items()}
        options = {k: v for k, v in options.items() if v is not None or SamplingOptions.model_fields[k].default is None}
        options |= {
            "classes": tuple(given(self.classes)) if which == "chosen" else which,
            "sampler": sampler,
            "sampler_options": self.samplers.read(sampler, by_id),
        }
        running = {n: getattr(self.playground.start, n) for n in SamplingOptions.model_fields if n not in options}
        key, texts = given(self.compare), (given(self.values) or "").strip()
        return Request(
            models=tuple(given(self.models)),
            options=validate(SamplingOptions, running | options, origin="options"),
            num_samples=number,
            compare=f"{key}={texts}" if key else "",
        )

    def updates(self, request: Request) -> list[Any]:
        """The components with the values of a request, in the order of `components`."""
        options = request.options
        which = options.classes if options.classes in ("all", "random") else "chosen"
        key, _, texts = request.compare.partition("=")
        chosen = list(options.classes) if which == "chosen" else []
        classes = gr.update(value=chosen, visible=which == "chosen")
        own = [list(request.models), which, classes, request.num_samples, options.sampler, key, texts]
        fields = [one.show(getattr(options, name)) for name, one in self.fields.items()]
        return [*own, *fields, *self.samplers.updates(options.sampler, options.sampler_options)]
