"""Samplers, data sets and feature extractors by name: ours and other packages' alike.

All are entry points; ours are declared in pyproject.toml. Nothing is imported until it is named. `module:attribute`
and `./file.py:Attribute` work in place of a name. `MPDIT_PLUGINS=off` leaves only our own.

    finding.py   which packages offer what, from their metadata alone
    loading.py   a name → its class, checked → an instance with checked options
    guard.py     keeps what a plugin raises, prints or exits with from reaching anything else
    records.py   what a result says of the plugins that made it, and getting them back
    survey.py    what is installed, what is broken and why (in a process of its own)
    scaffold.py  new plugin packages
"""

from mpdit_core.plugins.errors import PluginError, plugin_errors
from mpdit_core.plugins.finding import KINDS, Kind, names
from mpdit_core.plugins.loading import build, load
from mpdit_core.plugins.records import rebuild, record, require_package

__all__ = [
    "KINDS",
    "Kind",
    "PluginError",
    "build",
    "load",
    "names",
    "plugin_errors",
    "rebuild",
    "record",
    "require_package",
]
