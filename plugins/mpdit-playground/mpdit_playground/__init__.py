"""`mpdit playground MODEL…`: a local page to play with models.

command.py       the options, and starting the page
session.py       images with the pictures on the way, stopping, history; no Gradio
controls.py      fields of options classes, samplers and rules of guidance → Gradio components
page.py          the layout, and what happens on a click
show.py          pictures as HTML, PNGs that hold their settings
command_line.py  the `mpdit sample` command that makes the same images
nearest.py       the training images closest to a sample
"""

from mpdit_playground.command import playground
from mpdit_playground.options import PlaygroundOptions

__all__ = ["PlaygroundOptions", "playground"]
