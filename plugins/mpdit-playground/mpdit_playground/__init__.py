"""`mpdit playground MODEL…`: a local page to try models.

options.py       the options and the result
command.py       the command: opens the page, and serves it until Ctrl-C
session.py       requests, runs, visitors with their history, and the models that they share; no Gradio
columns.py       columns of images, computed as by `mpdit sample`, with intermediate pictures; no Gradio
controls.py      fields of options classes, samplers and rules of guidance → Gradio components
page.py          the layout, and what happens on a click
show.py          pictures as HTML, PNGs that hold their settings
command_line.py  the `mpdit sample` command that makes the same images
nearest.py       the training images closest to a sample
"""

from mpdit_playground.command import playground
from mpdit_playground.options import PlaygroundOptions

__all__ = ["PlaygroundOptions", "playground"]
