"""Samplers, data sets, feature extractors, autoencoders, objectives and commands by name.

All of them, those of mpdit and those of other packages, are entry points; mpdit's are declared in pyproject.toml. A
plugin is imported only when it is named. `module:attribute` and `./file.py:Attribute` work in place of a name.
`MPDIT_PLUGINS=off` leaves only the plugins of mpdit itself.

    contracts.py the kinds of plugin, and what a class of each must have
    finding.py   which packages offer what, from their metadata alone
    loading.py   a name → its class, checked → an instance with checked options
    options.py   the options of a plugin, checked and described
    errors.py    what a plugin raises, with its package and line
    records.py   what a result records about its plugins, and how they are built again
    scaffold.py  new plugin packages, from templates/
    job.py       what `mpdit plugins` lists and shows
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.plugins.contracts import KINDS, Kind, contract_problem
    from mpdit_core.plugins.errors import PluginError, broken, plugin_errors
    from mpdit_core.plugins.finding import command_entries, installed_version, names
    from mpdit_core.plugins.job import list_plugins, show_plugin
    from mpdit_core.plugins.loading import build, load, resolve
    from mpdit_core.plugins.options import checked_options
    from mpdit_core.plugins.records import PluginRecord, option_values, rebuild, record, require_package
    from mpdit_core.plugins.scaffold import new_plugin

__all__, __getattr__ = lazy_names(__name__, __file__)
