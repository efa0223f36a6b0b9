"""Makes Gradio components from the fields of options classes, samplers and rules of guidance.

A new option appears without a change here. To change how a type is shown: `control`.
"""

# Gradio is not in .venv (see Makefile).
# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import gradio as gr

from mpdit_core import plugins
from mpdit_core.api import UserError
from mpdit_core.sampling import GUIDANCE_RULES, Generator, SamplingOptions
from mpdit_core.settings import parse_field, parse_value, spelling_of, validate
from mpdit_playground.session import Playground, Request

NONE = "—"  # in a list of choices
CHOSEN = "chosen"  # classes that are picked by name


@dataclass(frozen=True, kw_only=True)
class Control:
    """A component, and the conversions of its value: `read` to the option's value, `show` back."""

    component: Any
    read: Callable[[Any], Any] = lambda value: value
    show: Callable[[Any], Any] = lambda value: value


def control(
    name: str, kind: Any, value: Any, info: str, *, empty: str = "", read_text: Callable[[str], Any] = parse_value
) -> Control:
    """The control for a value of type `kind`.

    It has no bounds: the option checks them itself, with a better message.

    Args:
        empty: what an empty text stands for.
        read_text: reads the text of a type that has no component of its own.
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
        return Control(component=made, read=number_of(plain))
    made = gr.Textbox(_as_text(value), max_lines=1, placeholder=empty, **shown)
    number = number_of(plain)
    return Control(component=made, read=lambda t: number(read_text(t)) if t.strip() else None, show=_as_text)


def _plain(kind: Any) -> tuple[Any, bool]:
    """A type without None and annotations, and whether None is allowed."""
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


def number_of(kind: Any) -> Callable[[Any], Any]:
    """A function that converts a number from the browser to int or float, and returns other values unchanged."""
    if kind is int:
        return lambda value: int(value) if isinstance(value, float) and value.is_integer() else value
    return lambda value: float(value) if kind is float and type(value) is int else value


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    return "" if value is None else str(value)


class Declared(NamedTuple):
    """An option as a sampler or a rule of guidance declares it."""

    name: str
    kind: Any
    default: Any
    description: str


class Choice(NamedTuple):
    """A sampler or a rule of guidance: a summary, and its options."""

    summary: str
    options: list[Declared]


def sampler_choices(samplers: Sequence[str]) -> dict[str, Choice]:
    """The samplers, with all their options except `num_steps`."""
    choices = {}
    for sampler in samplers:
        try:
            loaded = plugins.load("samplers", sampler)
        except UserError:  # a broken plugin; `mpdit plugins` says why
            continue
        hints = get_type_hints(loaded)
        fields = [f for f in dataclasses.fields(loaded) if f.init and f.name != "num_steps"]
        options = [Declared(f.name, hints[f.name], _default(f), f.metadata.get("description", "")) for f in fields]
        choices[sampler] = Choice(_summary(loaded), options)
    return choices


def _default(field: dataclasses.Field) -> Any:
    default = field.default_factory() if callable(field.default_factory) else field.default
    return None if default is dataclasses.MISSING else default


def rule_choices() -> dict[str, Choice]:
    """The rules of guidance, with their options."""
    return {
        name: Choice(
            _summary(rule),
            [Declared(key, f.annotation, f.default, f.description or "") for key, f in rule.model_fields.items()],
        )
        for name, rule in GUIDANCE_RULES.items()
    }


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n\n")[0]


@dataclass(frozen=True, kw_only=True)
class SharedOption:
    """An option whose control, and so its value, is shared by all choices that declare it equally."""

    control: Control
    default: Any


class ChoiceControls:
    """The controls for all samplers, or for all rules of guidance; only the chosen one's are visible.

    Args:
        table: the options' table in `--set`, such as `sampler`.
        chosen, given: the choice that the page begins with, and its options.
    """

    def __init__(self, table: str, choices: Mapping[str, Choice], *, chosen: str, given: Mapping[str, Any]):
        self.table, self.choices, self.given = table, choices, given
        self._alike: dict[str, SharedOption] = {}
        self.options = {
            name: {declared.name: self._option(declared) for declared in choice.options}
            for name, choice in choices.items()
        }
        visible = self._of(chosen)
        for component in self.components:
            component.visible = component._id in visible

    def _option(self, declared: Declared) -> SharedOption:
        key = repr(declared)
        if key not in self._alike:
            name, kind, default, description = declared
            made = control(f"{self.table}.{name}", kind, self.given.get(name, default), description)
            self._alike[key] = SharedOption(control=made, default=default)
        return self._alike[key]

    @property
    def components(self) -> list[Any]:
        return [option.control.component for option in self._alike.values()]

    def summary(self, name: str) -> str:
        """A description of this choice; empty for a broken plugin."""
        return self.choices[name].summary if name in self.choices else ""

    def _of(self, chosen: str) -> dict[int, str]:
        """Id of the component → name, for the options of one choice."""
        return {option.control.component._id: name for name, option in self.options.get(chosen, {}).items()}

    def read(self, chosen: str, values: Mapping[int, Any]) -> dict[str, Any]:
        """The options that differ from their defaults. `values`: by id of the component."""
        options = self.options.get(chosen, {})
        read = {name: o.control.read(values[o.control.component._id]) for name, o in options.items()}
        return {name: value for name, value in read.items() if value != options[name].default}

    def visibility(self, chosen: str) -> list[Any]:
        """Updates of `components` that show the options of this choice and leave their values."""
        visible = self._of(chosen)
        return [gr.update(visible=component._id in visible) for component in self.components]

    def updates(self, chosen: str, given: Mapping[str, Any]) -> list[Any]:
        """Updates of `components` that show the options of this choice with the given values or their defaults."""
        visible, found = self._of(chosen), []
        for option in self._alike.values():
            name = visible.get(option.control.component._id)
            value = {"value": option.control.show(given.get(name, option.default))} if name else {}
            found.append(gr.update(visible=name is not None, **value))
        return found


def class_names(generator: Generator) -> list[str]:
    """Names of the classes to choose from; none for a model without classes."""
    return generator.class_names[: generator.folder.config.model.num_classes]


class RequestControls:
    """All controls of a visitor. They are laid out when created, read as a `Request`, and set from a `Request`."""

    def __init__(self, playground: Playground):
        self.playground, self.start = playground, playground.start
        self.names = max(map(class_names, playground.generators.values()), key=len)
        self.fields: dict[str, Control] = {}  # of SamplingOptions that have a control of their own
        with gr.Group():
            self._lay_out_subject()
        with gr.Group():
            self.sampler = gr.Dropdown(
                playground.samplers, value=self.start.sampler, label="Sampler", elem_id="sampler"
            )
            with gr.Row():
                self._add("num_steps")
                self._add("guidance_scale")
        with gr.Accordion("More options of sampling", open=False):
            self.samplers = ChoiceControls(
                "sampler", sampler_choices(playground.samplers),
                chosen=self.start.sampler, given=self.start.sampler_options,
            )  # fmt: skip
            self.sampler.info = self.samplers.summary(self.start.sampler)
            self._lay_out_rest()
        with gr.Accordion("Compare settings", open=False):
            self._lay_out_comparison()

    def _lay_out_subject(self) -> None:
        """Models, classes, number of images, seed."""
        models, which = list(self.playground.generators), self._which(self.start)
        ids = self.playground.generators[models[0]].labels.classes if which == CHOSEN else None
        self.models = gr.Dropdown(
            models, value=models, multiselect=True, label="Models", visible=len(models) > 1,
            info="Side by side, from the same noise", elem_id="models",
        )  # fmt: skip
        self.which = gr.Radio(
            [("All in turn", "all"), ("Random", "random"), ("Chosen", CHOSEN)], value=which,
            label="Classes", visible=bool(self.names), elem_id="which",
        )  # fmt: skip
        self.classes = gr.Dropdown(
            [(f"{name} ({i})", i) for i, name in enumerate(self.names)], value=list(ids or ()), multiselect=True,
            label="Chosen classes", info="Type to search; they are taken in turn",
            num_choices_shown=len(self.names) or None, visible=bool(self.names) and which == CHOSEN, elem_id="classes",
        )  # fmt: skip
        with gr.Row():
            self.num_samples = gr.Number(
                self.playground.options.num_samples, label="Number of images", info="In every column", step=1,
                min_width=120, elem_id="num_samples",
            )  # fmt: skip
            self._add("seed")

    def _lay_out_rest(self) -> None:
        """Every other option of sampling, and the guide, which is one of the page's models."""
        own = {"classes", "sampler", "sampler_options", "guide", *self.fields}
        for name, field in SamplingOptions.model_fields.items():
            if spelling_of(field).panel == "Sampling" and name not in own:
                self._add(name)
        self.rules = ChoiceControls(
            "guidance", rule_choices(), chosen=self.start.guidance, given=self.start.guidance_options
        )
        guides = list(dict.fromkeys(guide for guide in (self.start.guide, *self.playground.generators) if guide))
        info = sentence(SamplingOptions.model_fields["guide"].description or "")
        made = gr.Dropdown(
            [(NONE, ""), *guides], value=self.start.guide or "", label="Guide", info=info, visible=len(guides) > 1
        )
        self.fields["guide"] = Control(component=made, read=_none_if_empty, show=lambda guide: guide or "")

    def _lay_out_comparison(self) -> None:
        hidden = {"guide", "sampler_options", "guidance_options"} | (set() if self.names else {"classes"})
        sweepable = [name for name, field in SamplingOptions.model_fields.items() if spelling_of(field).sweepable]
        tables = (self.samplers, self.rules)
        inner = dict.fromkeys(f"{t.table}.{name}" for t in tables for options in t.options.values() for name in options)
        self.compare = gr.Dropdown(
            [(NONE, ""), *(name for name in sweepable if name not in hidden), *inner], value="",
            label="Option to vary", info="One column for each value, from the same noise", elem_id="compare",
        )  # fmt: skip
        self.values = gr.Textbox(
            label="Its values", info="With commas between them; with ; between pairs", placeholder="1, 1.5, 2",
            max_lines=1, elem_id="values",
        )  # fmt: skip

    def _add(self, name: str) -> None:
        field = SamplingOptions.model_fields[name]
        self.fields[name] = control(
            name, field.annotation, getattr(self.start, name), field.description or "",
            empty=spelling_of(field).chosen, read_text=lambda text: parse_field(SamplingOptions, name, text),
        )  # fmt: skip

    @staticmethod
    def _which(options: SamplingOptions) -> str:
        return str(options.classes) if options.classes in ("all", "random") else CHOSEN

    @property
    def components(self) -> list[Any]:
        """The inputs of `read` and the outputs of `updates`."""
        own = [self.models, self.which, self.classes, self.num_samples, self.sampler, self.compare, self.values]
        fields = [field.component for field in self.fields.values()]
        return [*own, *fields, *self.samplers.components, *self.rules.components]

    def read(self, values: Sequence[Any]) -> Request:
        """The request from these values of `components`. Raises `UserError` for impossible values."""
        by_id = {component._id: value for component, value in zip(self.components, values, strict=True)}
        models, which, classes, number, sampler, key, texts = values[:7]
        if which == CHOSEN and not classes:
            raise UserError("no class is chosen", code="no-such-class", expected="one or more, or all in turn")
        number = number_of(int)(number)
        if not isinstance(number, int) or number < 1:
            raise UserError(f"{number} images", code="invalid-value", expected="an integer of at least 1")
        given = {name: field.read(by_id[field.component._id]) for name, field in self.fields.items()}
        given |= {
            "classes": tuple(classes) if which == CHOSEN else which,
            "sampler": sampler,
            "sampler_options": self.samplers.read(sampler, by_id),
            "guidance_options": self.rules.read(given["guidance"], by_id),
        }
        options = validate(SamplingOptions, self.start.sampling_values() | given, origin="options")
        compare = f"{key}={texts or ''}" if key else ""
        return Request(models=tuple(models), options=options, num_samples=number, compare=compare)

    def updates(self, request: Request) -> list[Any]:
        """The values of a request, in the order of `components`."""
        options, which = request.options, self._which(request.options)
        key, _, texts = request.compare.partition("=")
        classes = gr.update(value=list(options.classes) if which == CHOSEN else [], visible=which == CHOSEN)
        own = [list(request.models), which, classes, request.num_samples, options.sampler, key, texts]
        fields = [field.show(getattr(options, name)) for name, field in self.fields.items()]
        samplers = self.samplers.updates(options.sampler, options.sampler_options)
        return [*own, *fields, *samplers, *self.rules.updates(options.guidance, options.guidance_options)]
