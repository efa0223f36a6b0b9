"""Random numbers that depend on their purpose alone, not on the process or the time.

Every draw has a key such as `(seed, "noise", image_index)`; a hash of the key seeds a generator for it. So the numbers
are the same after a restart and for any number of processes. Where a generator per draw would cost more than its
numbers, a `RandomTable` takes all of them from one stream, each from a fixed place.
"""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

WORDS_AT_ONCE = 1 << 17  # 1 MiB; smaller parts make threads wait for the interpreter, larger ones leave the cache
WORDS_PER_THREAD = 1 << 18  # fewer are made sooner than a thread is woken


def hash_seed(*key: int | str) -> int:
    """A 63-bit seed from `key`; stable over Python versions and machines."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for `key`. On the CPU (the default) its numbers are the same on every machine."""
    return torch.Generator(device=device).manual_seed(hash_seed(*key))


class RandomTable:
    """An endless table of random numbers for `key`: each row holds some uniform and some normal numbers.

    All rows are one stream of 64-bit words, of which each row takes the same number: one per uniform number, one per
    pair of normal ones (Box and Muller 1958). NumPy's PCG64DXSM can jump to any place of its stream, and its raw words
    are the same in every version of NumPy. So a row depends on its number alone, and not on the number of threads.
    """

    def __init__(self, *key: int | str, uniforms: int, normals: int, threads: int = 1):
        self.seed, self.uniforms, self.normals = hash_seed(*key), uniforms, normals
        self.row_words = uniforms + math.ceil(normals / 2)
        self.threads = threads
        # Kept from call to call: a new thread has to get its memory from the system first.
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="random")

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows `start` to `stop - 1`: uniform numbers in (0, 1), [n, uniforms], and normal ones, [n, normals].

        Both are float32.
        """
        count = stop - start
        uniforms = np.empty((count, self.uniforms), dtype=np.float32)
        normals = np.empty((count, self.normals), dtype=np.float32)
        parts = max(1, min(self.threads, count, count * self.row_words // WORDS_PER_THREAD))
        ends = [count * part // parts for part in range(parts + 1)]

        def fill(first: int, last: int) -> None:
            self._fill(start + first, uniforms[first:last], normals[first:last])

        if parts == 1:
            fill(0, count)
        else:
            list(self._pool.map(fill, ends, ends[1:]))
        return uniforms, normals

    def _fill(self, start: int, uniforms: np.ndarray, normals: np.ndarray) -> None:
        """Fills consecutive rows from row `start` on, some at a time."""
        stream = np.random.PCG64DXSM(self.seed)
        stream.advance(start * self.row_words)
        rows = max(1, WORDS_AT_ONCE // self.row_words)
        for first in range(0, len(uniforms), rows):
            count = min(rows, len(uniforms) - first)
            words = stream.random_raw(count * self.row_words).reshape(count, self.row_words)
            uniforms[first : first + count] = _uniform(words[:, : self.uniforms])
            _normal(words[:, self.uniforms :], out=normals[first : first + count])


def _uniform(words: np.ndarray) -> np.ndarray:
    """Numbers in (0, 1), without the ends, from the upper 23 bits of each word: float32 holds them exactly."""
    return ((words >> 41).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)


def _normal(words: np.ndarray, *, out: np.ndarray) -> None:
    """Fills `out [n, 2·m]` (or one less) from `words [n, m]`: the lower half of a word gives a radius, the upper one
    an angle.

    The radius is at most 6.76; of normal pairs, one in 2^33 would be larger.
    """
    m = words.shape[1]
    radius = words.astype(np.uint32).astype(np.float32)
    radius *= np.float32(2**-32)
    radius += np.float32(2**-33)  # in (0, 1]
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = (words >> 32).astype(np.uint32).view(np.int32).astype(np.float32)  # from -2^31 to 2^31
    angle *= np.float32(math.pi / 2**31)
    np.multiply(radius, np.cos(angle), out=out[:, :m])
    np.sin(angle, out=angle)
    angle *= radius
    out[:, m:] = angle[:, : out.shape[1] - m]
