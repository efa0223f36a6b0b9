"""Files of pictures in unusual formats, 16 × 16 pixels, with their true pixels: `odd_images()`.

The files are written byte by byte, so that the expected pixels do not come from a library that reads them.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

SIDE = 16


class Odd(NamedTuple):
    """A file, and its pixels as uint8 [16, 16, 3]; None where it must be refused."""

    data: bytes
    pixels: np.ndarray | None
    tolerance: int = 0


def odd_images() -> dict[str, Odd]:
    """All files by name; the same every time."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    alpha = random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    images = {}
    for part in (_deep_png, _low_png, _transparent, _tiff, _netpbm, _exif, _damaged):
        images |= part(colour, alpha, random)
    return images


def _deep_png(colour: np.ndarray, alpha: np.ndarray, random: np.random.Generator) -> dict[str, Odd]:
    grey = random.integers(0, 65536, (SIDE, SIDE))
    rgb = random.integers(0, 65536, (SIDE, SIDE, 3))
    rgb[:, :8] = (1000, 2000, 3000)
    half = np.where(np.arange(SIDE) < 8, 1000, 40000).repeat(SIDE).reshape(SIDE, SIDE).T
    with_alpha = np.dstack([rgb, alpha.astype(int) * 257])
    grey_alpha = np.dstack([grey, alpha.astype(int) * 257])
    clear = (rgb == (1000, 2000, 3000)).all(-1)[..., None]
    return {
        "gray16.png": Odd(png(grey, 16, 0), as_rgb(np.rint(grey / 257))),
        "rgb16.png": Odd(png(rgb, 16, 2), np.rint(rgb / 257).astype(np.uint8)),
        "rgba16.png": Odd(png(with_alpha, 16, 6), on_white(np.rint(rgb / 257), alpha), 1),
        "la16.png": Odd(png(grey_alpha, 16, 4), on_white(as_rgb(np.rint(grey / 257)), alpha), 1),
        "gray16-clear.png": Odd(
            png(half, 16, 0, chunk(b"tRNS", struct.pack(">H", 1000))),
            as_rgb(np.where(half == 1000, 255, np.rint(half / 257))),
        ),
        "rgb16-clear.png": Odd(
            png(rgb, 16, 2, chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))),
            np.where(clear, 255, np.rint(rgb / 257)).astype(np.uint8),
        ),
    }


def _low_png(colour: np.ndarray, alpha: np.ndarray, random: np.random.Generator) -> dict[str, Odd]:
    images = {}
    for depth in (1, 2, 4, 8):
        top = 2**depth - 1
        values = random.integers(0, top + 1, (SIDE, SIDE))
        full = np.rint(values * 255 / top)
        images[f"gray{depth}.png"] = Odd(png(values, depth, 0), as_rgb(full))
        for clear in {0, max(1, top - 1)}:
            data = png(values, depth, 0, chunk(b"tRNS", struct.pack(">H", clear)))
            images[f"gray{depth}-clear{clear}.png"] = Odd(data, as_rgb(np.where(values == clear, 255, full)))
    return images


def _transparent(colour: np.ndarray, alpha: np.ndarray, random: np.random.Generator) -> dict[str, Odd]:
    palette = random.integers(0, 256, (16, 3), dtype=np.uint8)
    index = random.integers(0, 16, (SIDE, SIDE))
    opacity = np.full(16, 255, np.uint8)
    opacity[3], opacity[5] = 0, 128
    chunks = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", opacity.tobytes())
    rgba = Image.fromarray(np.dstack([colour, alpha]))
    over = on_white(colour, alpha)
    return {
        "palette-alpha.png": Odd(png(index, 8, 3, chunks), on_white(palette[index], opacity[index]), 1),
        "palette4.png": Odd(png(index, 4, 3, chunk(b"PLTE", palette.tobytes())), palette[index]),
        "rgba.png": Odd(saved(rgba, "PNG"), over, 1),
        "rgba.webp": Odd(saved(rgba, "WEBP", lossless=True, exact=True), over, 1),
        "rgba.tga": Odd(saved(rgba, "TGA"), over, 1),
    }


def _tiff(colour: np.ndarray, alpha: np.ndarray, random: np.random.Generator) -> dict[str, Odd]:
    deep = random.integers(0, 65536, (SIDE, SIDE))
    rgb = random.integers(0, 65536, (SIDE, SIDE, 3))
    grey = alpha.astype(float)
    dark = random.integers(0, 2, (SIDE, SIDE))
    twelve = random.integers(0, 4096, (SIDE, SIDE))
    pairs = twelve.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    smooth = gradient()
    lab = ImageCms.profileToProfile(
        Image.fromarray(smooth), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    return {
        "gray16.tif": Odd(tiff(deep.astype("<u2"), 16), as_rgb(np.rint(deep / 257))),
        "gray16-from-white.tif": Odd(
            tiff(deep.astype("<u2"), 16, photometric=0), as_rgb(np.rint((65535 - deep) / 257))
        ),
        "gray8-from-white.tif": Odd(tiff(alpha, 8, photometric=0), as_rgb(255 - alpha)),
        "gray12.tif": Odd(tiff(packed.astype(np.uint8), 12), as_rgb(np.rint(twelve * 255 / 4095))),
        "rgb16.tif": Odd(tiff(rgb.astype("<u2"), 16, photometric=2), np.rint(rgb / 257).astype(np.uint8)),
        "rgb16-deflate.tif": Odd(tiff(rgb.astype("<u2"), 16, photometric=2, deflate=True), np.rint(rgb / 257)),
        "float-1.tif": Odd(tiff((grey / 255).astype("<f4"), 32, kind=3), as_rgb(grey)),
        "float-1-from-white.tif": Odd(tiff((grey / 255).astype("<f4"), 32, photometric=0, kind=3), as_rgb(255 - grey)),
        "float-255.tif": Odd(tiff(grey.astype("<f4"), 32, kind=3), as_rgb(grey)),
        "float-255-dark.tif": Odd(tiff(dark.astype("<f4"), 32, kind=3), as_rgb(dark)),
        "float-below-0.tif": Odd(tiff((grey - 128).astype("<f4"), 32, kind=3), None),
        "uint32.tif": Odd(tiff(deep.astype("<u4"), 32), None),
        "int16.tif": Odd(tiff((deep // 2).astype("<i2"), 16, kind=2), None),
        "int8.tif": Odd(tiff((alpha // 2).astype(np.int8), 8, kind=2), None),
        "lab.tif": Odd(saved(lab, "TIFF"), smooth, 12),  # 8 bits of Lab are coarse for dark sRGB
    }


def _netpbm(colour: np.ndarray, alpha: np.ndarray, random: np.random.Generator) -> dict[str, Odd]:
    grey, rgb = alpha.astype(int) * 4, colour.astype(int) * 4
    return {
        "gray1023.pgm": Odd(b"P5 16 16 1023\n" + grey.astype(">u2").tobytes(), as_rgb(np.rint(grey * 255 / 1023))),
        "rgb1023.ppm": Odd(b"P6 16 16 1023\n" + rgb.astype(">u2").tobytes(), np.rint(rgb * 255 / 1023)),
        "deep.jp2": Odd(
            saved(Image.fromarray((grey * 64).astype(np.uint16)), "JPEG2000"), as_rgb(np.rint(grey * 64 / 257))
        ),
    }


def _exif(colour: np.ndarray, alpha: np.ndarray, random: np.random.Generator) -> dict[str, Odd]:
    """Pictures stored rotated, with the EXIF orientation; and pictures with damaged EXIF data."""
    turned = {
        1: colour, 2: colour[:, ::-1], 3: colour[::-1, ::-1], 4: colour[::-1], 5: colour.transpose(1, 0, 2),
        6: np.rot90(colour), 7: colour[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(colour, -1),
    }  # fmt: skip
    images = {}
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            data = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
            images[f"exif{orientation}.{kind.lower()}"] = Odd(data, colour)
    smooth = gradient()
    quarter = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    tail = 2 + 12 * 2 + 4 + 8
    for name, body in {
        "rational": ifd(quarter, struct.pack("<HHII", 0x11A, 10, 1, tail)) + struct.pack("<ii", -1, 0),
        "bad-type": ifd(quarter, struct.pack("<HHII", 0x11B, 99, 1, 0)),
        "long": ifd(struct.pack("<HHII", 0x112, 4, 1, 6)),
        "byte": ifd(struct.pack("<HHIBBBB", 0x112, 1, 1, 6, 0, 0, 0)),
        "far-gps": ifd(quarter, struct.pack("<HHII", 0x8825, 4, 1, 60000)),
    }.items():
        images[f"exif6-{name}.jpg"] = Odd(jpeg(np.rot90(smooth), b"Exif\0\0" + body), smooth, 8)
    for name, body in {
        "garbage": b"Exif\0\0garbage!!",
        "empty": b"Exif\0\0",
        "9": b"Exif\0\0" + ifd(struct.pack("<HHIHH", 0x112, 3, 1, 9, 0)),
    }.items():
        images[f"exif-{name}.jpg"] = Odd(jpeg(smooth, body), smooth, 8)
    return images


def _damaged(colour: np.ndarray, alpha: np.ndarray, random: np.random.Generator) -> dict[str, Odd]:
    large = Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    text = chunk(b"zTXt", b"Raw\0\0" + zlib.compress(b"x" * 1_500_000))
    half = {kind: saved(large, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF")}
    return {f"half.{kind.lower()}": Odd(data[: len(data) // 2], None) for kind, data in half.items()} | {
        "long-text.png": Odd(png(colour, 8, 2, text), colour),
        "other-format.jpeg": Odd(saved(Image.fromarray(colour), "PNG"), colour),
        "empty.jpg": Odd(b"", None),
        "html.jpg": Odd(b"<html><body>404</body></html>", None),
        "postscript.jpg": Odd(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\nshowpage\n", None),
        "bomb.png": Odd(png(np.zeros((0, 0)), 8, 0, width=60000, height=60000), None),
    }


def gradient() -> np.ndarray:
    """Smooth colours, which JPEG keeps."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = np.arange(SIDE) * 16, np.arange(SIDE)[:, None] * 16, 60
    return pixels


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(grey).astype(np.uint8)[..., None], 3, axis=2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray, exif: bytes) -> bytes:
    data = saved(Image.fromarray(np.ascontiguousarray(pixels)), "JPEG", quality=98, subsampling=0)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def ifd(*entries: bytes) -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    values: np.ndarray, depth: int, colour_type: int, extra: bytes = b"", *, width: int = SIDE, height: int = SIDE
) -> bytes:
    """A PNG of `values [H, W]` or `[H, W, channels]`, `depth` bits each; `extra` chunks stand before the pixels."""
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        bits = (values.astype(np.uint8)[..., None] >> np.arange(depth)[::-1]) & 1
        rows = [np.packbits(row).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int, *, photometric: int = 1, kind: int = 1, deflate: bool = False) -> bytes:
    """A TIFF of one strip; `kind`: 1 unsigned, 2 with a sign, 3 float; `photometric`: 0 and 1 grey, 2 colours."""
    data = zlib.compress(values.tobytes()) if deflate else values.tobytes()
    channels = 3 if photometric == 2 else 1
    behind = 8 + len(data) + 2 + 12 * 10 + 4  # offset of numbers that do not fit in their entry
    depth = (bits, 0) if channels == 1 else struct.unpack("<HH", struct.pack("<I", behind))
    tags = [
        (256, 1, SIDE), (257, 1, SIDE), (258, channels, depth), (259, 1, 8 if deflate else 1), (262, 1, photometric),
        (273, 1, 8), (277, 1, channels), (278, 1, SIDE), (279, 1, len(data)), (339, 1, kind),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHI", tag, 3 if tag != 279 else 4, count)
        + (struct.pack("<HH", *value) if isinstance(value, tuple) else struct.pack("<I", value))
        for tag, count, value in tags
    )
    end = struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + struct.pack("<3H", bits, bits, bits)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + end
