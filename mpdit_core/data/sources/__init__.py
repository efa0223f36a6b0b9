"""Where images and labels come from: a folder or archive, the Hub through `datasets`, or a plugin, opened by name.

All are `mpdit_core.api.Dataset`s. To add one: a plugin in the group `mpdit.datasets`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpdit_core.lazy import lazy_names

if TYPE_CHECKING:
    from mpdit_core.data.sources.class_lists import MAX_CLASSES, read_class_names
    from mpdit_core.data.sources.files import natural_order
    from mpdit_core.data.sources.hub import HubStream
    from mpdit_core.data.sources.open import absolute_source, open_source, require_trusted, source_name
    from mpdit_core.data.sources.reading import (
        Decode,
        classes_and_fingerprint,
        count_items,
        evenly_spread,
        read_items,
        source_notes,
    )
    from mpdit_core.data.sources.scan import Entry, Found, find_images, read_entry

__all__, __getattr__ = lazy_names(__name__, __file__)
