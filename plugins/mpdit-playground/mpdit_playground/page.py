"""The page: its layout, and its reactions to clicks. One job computes at a time; the jobs of other visitors wait."""

# Gradio is not in .venv (see Makefile).
# pyright: reportMissingImports=false

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.themes import Base

from mpdit_core.api import UserError
from mpdit_playground import show
from mpdit_playground.controls import RequestControls, sentence
from mpdit_playground.nearest import nearest
from mpdit_playground.session import Playground, Run, Visitor

THEME = Base(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500"
)
"""The system's fonts, so that nothing is downloaded; and a grey for secondary text that is dark enough to read."""

JOB: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
TO_PICTURES = """() => {
    if (innerWidth < 800) setTimeout(() => document.querySelector('#status').scrollIntoView({behavior: 'smooth'}), 700);
}"""
"""Scrolls to the pictures on a phone, where they are below the options."""

TO_DETAILS = "() => document.querySelector('#details').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
"""Scrolls to the details, which are out of sight below many pictures."""


class Page:
    """The Gradio page for a `Playground`."""

    def __init__(self, playground: Playground):
        self.playground = playground
        with gr.Blocks(title="mpdit playground", analytics_enabled=False, fill_width=True) as self.blocks:
            self._lay_out()
            self._connect()
        self.blocks.queue(default_concurrency_limit=1)

    def open(self, *, host: str, port: int | None, browser: bool) -> str:
        """Serves the page, and returns its address. Raises `OSError` for a port that is taken."""
        _, url, _ = self.blocks.launch(
            server_name=host, server_port=port, inbrowser=browser, share=False, quiet=True, prevent_thread_lock=True,
            ssr_mode=False, footer_links=[], theme=THEME, css=show.CSS,
        )  # fmt: skip
        return url

    def close(self) -> None:
        for visitor in self.playground.visitors.values():
            visitor.stop.set()
        self.blocks.close(verbose=False)

    def _lay_out(self) -> None:
        gr.HTML(f'<header class="title"><b>mpdit playground</b> {show.escape(self._models())}</header>')
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=340, elem_id="controls"):
                self.controls = RequestControls(self.playground)
                with gr.Row(elem_id="buttons"):
                    self.sample = gr.Button("Sample", variant="primary", min_width=100, elem_id="sample")
                    self.stop = gr.Button("Stop", variant="stop", interactive=False, min_width=100, elem_id="stop")
            with gr.Column(scale=5, min_width=340):
                self.status = gr.HTML(show.status_html("Press Sample."), elem_id="status")
                self.pictures = gr.HTML(elem_id="pictures", js_on_load=show.ON_LOAD)
                self.details = gr.HTML(elem_id="details")
                self.command = gr.Code(
                    language="shell", label="The same images by command line", interactive=False, wrap_lines=True,
                    show_line_numbers=False, lines=1, visible=False, elem_id="command",
                )  # fmt: skip
                with gr.Row():
                    self.find = gr.Button("Nearest training images", size="sm", scale=0, min_width=220, visible=False)
                self.near = gr.HTML(elem_id="near")
                self.history = gr.HTML(elem_id="history", js_on_load=show.ON_LOAD)

    def _models(self) -> str:
        generators = self.playground.generators
        if len(generators) > 1:
            return f"{len(generators)} models"
        ((model, generator),) = generators.items()
        return f"{model} · preset {generator.folder.config.preset} · step {generator.folder.step}"

    def _connect(self) -> None:
        controls, samplers, buttons = self.controls, self.controls.samplers, [self.sample, self.stop]
        shown = [self.pictures, self.details, self.command, self.find, self.near, self.history]
        controls.which.change(lambda w: gr.update(visible=w == "chosen"), controls.which, controls.classes, **AT_ONCE)
        controls.sampler.change(samplers.visibility, controls.sampler, samplers.components, **AT_ONCE)
        controls.sampler.change(
            lambda name: gr.update(info=samplers.summary(name)), controls.sampler, controls.sampler, **AT_ONCE
        )
        rule, rules = controls.fields["guidance"].component, controls.rules
        rule.change(rules.visibility, rule, rules.components, **AT_ONCE)
        rule.change(lambda name: gr.update(info=rules.summary(name)), rule, rule, **AT_ONCE)
        begun = self.sample.click(self._begin, None, [self.status, *buttons], js=TO_PICTURES, **AT_ONCE)
        outputs = [self.status, *shown]  # no progress by Gradio: it would hide the status, which says more
        done = begun.then(self._sample, controls.components, outputs, show_progress="hidden", **JOB)
        done.then(self._end, None, buttons, **AT_ONCE)
        self.stop.click(self._stop, None, self.status, **AT_ONCE)
        self.pictures.select(self._choose, None, shown, **AT_ONCE).then(None, js=TO_DETAILS)
        self.history.select(self._return_to, None, [self.status, *shown, *controls.components], **AT_ONCE)
        self.find.click(
            self._find, None, [self.status, self.near], show_progress_on=self.near, show_progress="minimal", **JOB
        )
        self.blocks.unload(self._leave)

    def _visitor(self, request: gr.Request) -> Visitor:
        return self.playground.visitor(request.session_hash)

    def _leave(self, request: gr.Request) -> None:
        self.playground.leave(request.session_hash)

    def _begin(self, request: gr.Request) -> Any:
        before = self.playground.queue(self._visitor(request))
        jobs = "another visitor's job" if before == 1 else f"{before} jobs of other visitors"
        text = f"Waiting for {jobs} to finish." if before else "Starting."
        return show.status_html(text, kind="busy"), gr.update(interactive=False), gr.update(interactive=True)

    def _end(self, request: gr.Request) -> Any:
        self.playground.done(self._visitor(request))
        return gr.update(interactive=True), gr.update(interactive=False)

    def _stop(self, request: gr.Request) -> Any:
        self._visitor(request).stop.set()
        return show.status_html("Stopping.", kind="busy")

    def _sample(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        visitor = self._visitor(request)
        nothing = [gr.skip()] * 6
        try:
            if visitor.stop.is_set():
                yield show.status_html("Stopped before it began."), *nothing
                return
            run = None
            for run in self.playground.run(self.controls.read(values), visitor):
                text = f"Sampling, {run.seconds:.0f} s"
                yield show.status_html(text, kind="busy"), show.run_html(run), *nothing[1:]
            assert run is not None
            visitor.shown, visitor.chosen = run, (0, 0)
            yield show.status_html(show.finished_text(run)), *self._shown(visitor)
        except UserError as error:
            yield show.status_html(_message(error), kind="error"), *nothing
        except Exception as error:  # a defect: the page stays usable
            logging.getLogger(__name__).exception("the page failed")
            text = f"mpdit failed: {type(error).__name__}: {error}. The terminal has the details."
            yield show.status_html(text, kind="error"), *nothing

    def _shown(self, visitor: Visitor) -> list[Any]:
        """The updates of pictures, details, command, button for the nearest images, these images, and history."""
        run = visitor.shown
        if run is None:
            return [gr.skip()] * 6
        details = show.details_html(run, visitor.chosen)
        column = run.columns[visitor.chosen[0]]
        return [
            show.run_html(run, visitor.chosen),
            details,
            gr.update(value=column.command, visible=bool(details)),
            gr.update(visible=bool(details) and self.playground.names_latents(column.model)),
            "",
            show.history_html(visitor),
        ]

    def _choose(self, request: gr.Request, event: gr.EventData) -> list[Any]:
        visitor = self._visitor(request)
        column, image = (int(part) for part in event.pick.split(","))
        run = visitor.shown
        if run is None or visitor in self.playground.jobs:
            return [gr.skip()] * 6
        visitor.chosen = (column, image)
        return self._shown(visitor)

    def _return_to(self, request: gr.Request, event: gr.EventData) -> list[Any]:
        visitor = self._visitor(request)
        if visitor in self.playground.jobs:
            return [gr.skip()] * (7 + len(self.controls.components))
        visitor.shown, visitor.chosen = visitor.runs[int(event.pick)], (0, 0)
        text = show.status_html(f"From the history. {show.finished_text(visitor.shown)}")
        return [text, *self._shown(visitor), *self.controls.updates(visitor.shown.request)]

    def _find(self, request: gr.Request) -> list[Any]:
        visitor = self._visitor(request)
        if visitor.shown is None:
            return [gr.skip()] * 2
        column, image = visitor.chosen
        chosen: Run = visitor.shown
        latent = chosen.columns[column].pictures[image].latent
        assert latent is not None, "the button is hidden"
        try:
            found = nearest(chosen.columns[column].generator, latent, latents=self.playground.options.latents)
        except UserError as error:
            return [show.status_html(_message(error), kind="error"), gr.skip()]
        return [gr.skip(), show.nearest_html(found)]


def _message(error: UserError) -> str:
    """An error in one line, without its remedy, which is about command lines."""
    return f"{sentence(error.what)}." + (f" Expected: {error.expected}." if error.expected else "")
