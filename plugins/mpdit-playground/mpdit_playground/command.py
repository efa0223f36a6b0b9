"""`mpdit playground MODEL…`: opens the page and serves it. Imports torch and Gradio only when it is called."""

from __future__ import annotations

import os
import threading

from mpdit_core.api import Command, UserError
from mpdit_core.errors import Interrupted
from mpdit_core.reporting import Note, Reporter, Warning, silent
from mpdit_playground.options import PlaygroundOptions, PlaygroundResult

LOCAL = ("127.0.0.1", "localhost", "::1")


def playground(options: PlaygroundOptions, *, report: Reporter = silent) -> PlaygroundResult:
    """Serves the page until Ctrl-C.

    Raises:
        UserError: no model (`no-model`), one that cannot be sampled, or a port that is taken (`port-in-use`).
    """
    if not options.models:
        raise UserError(
            "no model is given", code="no-model", expected="a run, checkpoint or export, or several",
            remedy="e.g. mpdit playground runs/digits-1",
        )  # fmt: skip
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from mpdit_playground.page import Page
    from mpdit_playground.session import Playground

    page = Page(Playground(options))
    try:
        url = page.open(host=options.host, port=options.port, browser=options.browser)
    except OSError as error:
        where = f"{options.host}:{options.port or 7860}"
        raise UserError(
            f"the page cannot be opened at {where}: {error}",
            code="port-in-use",
            expected="a free port",
            remedy="--port N",
        ) from error
    if options.host not in LOCAL:
        text = f"anyone who can connect to {options.host} can use this page"
        report(Warning(code="open-to-network", text=text))
    report(Note(text=f"the page is at {url} until Ctrl-C"))
    try:
        threading.Event().wait()
    except (KeyboardInterrupt, Interrupted):
        pass  # this is how the user ends it
    finally:
        page.close()
    return PlaygroundResult(url=url)


playground_command = Command(
    options=PlaygroundOptions, job=playground, help="Open a local page to try a model, or several side by side."
)
