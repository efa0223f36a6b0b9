"""Imports the names of a package when they are first used, so that importing the package stays cheap.

if TYPE_CHECKING:  # the names of this package
    from mpdit_core.sampling.job import sample

__all__, __getattr__ = lazy_names(__name__, __file__)
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[list[str], Callable[[str], Any]]:
    """`__all__` and `__getattr__` of a package: its imports for type checkers are carried out on first use.

    Args:
        package: the package's `__name__`.
        file: its `__file__`, which is read for `from MODULE import NAMES` below `if TYPE_CHECKING:`.
    """
    blocks = [node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [line for block in blocks for line in block.body if isinstance(line, ast.ImportFrom)]
    homes = {alias.name: str(line.module) for line in imports for alias in line.names}

    def find(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return sorted(homes), find
