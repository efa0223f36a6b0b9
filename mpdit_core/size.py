"""Height and width: of images in pixels, of latents in latent pixels. Torch-free."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from pydantic_core import core_schema

MAX_RESOLUTION = 2**14
"""The longest side that is accepted anywhere, in pixels."""


class Size(NamedTuple):
    """Height, then width. Read from 256, "256", "256x384" or [256, 384]; written as 256 if both are equal, otherwise as
    "256x384", in JSON, TOML, text and names of folders.
    """

    height: int
    width: int

    @classmethod
    def square(cls, side: int) -> Size:
        return cls(side, side)

    @classmethod
    def parse(cls, given: Any) -> Size:
        """Raises `ValueError` for anything that is not one side, or height and width, from 1 to `MAX_RESOLUTION`."""
        sides: Any = given if isinstance(given, list | tuple) else [given]
        if isinstance(given, str):
            text = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", given)
            sides = [int(side) for side in text.groups() if side] if text else []
        if len(sides) not in (1, 2) or not all(type(side) is int and 1 <= side <= MAX_RESOLUTION for side in sides):
            raise ValueError(f"expected one number or HEIGHTxWIDTH, each from 1 to {MAX_RESOLUTION}")
        return cls(sides[0], sides[-1])

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def is_square(self) -> bool:
        return self.height == self.width

    def is_multiple(self, unit: int) -> bool:
        return self.height % unit == 0 and self.width % unit == 0

    def __floordiv__(self, factor: int) -> Size:
        return Size(self.height // factor, self.width // factor)

    def __mul__(self, factor: int) -> Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Size(self.height * factor, self.width * factor)

    def __str__(self) -> str:
        return str(self.plain())

    def plain(self) -> int | str:
        """What files hold: an integer for a square."""
        return self.height if self.is_square else f"{self.height}x{self.width}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(Size.plain)
        return core_schema.no_info_plain_validator_function(cls.parse, serialization=written)
