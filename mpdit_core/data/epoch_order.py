"""The order in which training visits the images; it can begin anywhere."""

from __future__ import annotations

import numpy as np

from mpdit_core.runtime.seeding import hash_seed


class EpochOrder:
    """The order in which `count` images are visited: an endless stream of epochs, each with its own permutation.

    The permutation of epoch e is a function of (seed, e) alone, so the stream can begin at any position, and every
    process can compute its share. It is the same for all versions of NumPy: raw PCG64 numbers, sorted.
    """

    def __init__(self, count: int, seed: int):
        if count < 1:
            raise ValueError(f"an order of {count} images")
        self.count, self.seed = count, seed
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def permutation(self, epoch: int) -> np.ndarray:
        """int64 [count]: the image at each place of `epoch`."""
        if self._cached[0] != epoch:
            keys = np.random.PCG64(hash_seed(self.seed, "order", epoch)).random_raw(self.count)
            order = np.argsort(keys)  # several times faster than the stable sort
            if (np.diff(keys[order]) == 0).any():  # the order of equal numbers is undefined
                order = np.argsort(keys, kind="stable")
            self._cached = (epoch, order)
        return self._cached[1]

    def indices(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]: the images at places `start` to `stop` of the stream, counted over all epochs."""
        parts = []
        while start < stop:
            epoch, place = divmod(start, self.count)
            part = self.permutation(epoch)[place : place + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
