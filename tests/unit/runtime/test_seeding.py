"""A table of random numbers: rows that depend on their number alone, and the distributions that they follow."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpdit_core.runtime import seeding
from mpdit_core.runtime.seeding import RandomTable


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """4,096 rows of 3 uniform and 256 normal numbers."""
    return RandomTable(0, "test", uniforms=3, normals=256).rows(0, 4096)


def test_a_row_depends_on_its_number_alone(monkeypatch):
    table = RandomTable(5, "test", uniforms=2, normals=1001)
    whole = table.rows(0, 100)
    for start, stop in ((0, 1), (7, 8), (40, 100), (99, 100)):
        for part, all_rows in zip(table.rows(start, stop), whole, strict=True):
            np.testing.assert_array_equal(part, all_rows[start:stop])
    monkeypatch.setattr(seeding, "WORDS_PER_THREAD", 100)
    in_threads = RandomTable(5, "test", uniforms=2, normals=1001, threads=7)
    for part, all_rows in zip(in_threads.rows(0, 100), whole, strict=True):
        np.testing.assert_array_equal(part, all_rows)
    far = 10**15  # a place of the stream beyond 2^58
    np.testing.assert_array_equal(table.rows(far, far + 3)[1][2], table.rows(far + 2, far + 3)[1][0])


def test_other_keys_have_other_numbers():
    first, other = (RandomTable(seed, "test", uniforms=1, normals=1000).rows(0, 100)[1] for seed in (0, 1))
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 4 / math.sqrt(first.size)


def test_the_numbers_are_those_of_every_version():
    uniforms, normals = RandomTable(0, "test", uniforms=2, normals=3).rows(10, 11)
    np.testing.assert_allclose(uniforms, [[0.18546695, 0.032005727]], rtol=1e-6)
    np.testing.assert_allclose(normals, [[0.59534943, 1.4114255, -0.034572318]], rtol=1e-5)


def test_moments_and_tails_of_normal_numbers(drawn):
    z = drawn[1].astype(np.float64).ravel()
    n = z.size
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        scatter = math.sqrt((math.prod(range(1, 2 * power, 2)) - expected**2) / n)  # standard error of the moment
        assert np.mean(z**power) == pytest.approx(expected, abs=4 * scatter)
    for beyond in (2, 3, 4):
        expected = n * math.erfc(beyond / math.sqrt(2))
        assert np.count_nonzero(np.abs(z) > beyond) == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert 4.7 < np.abs(z).max() < 6


def test_normal_and_uniform_numbers_pass_kolmogorov_smirnov(drawn):
    uniforms, normals = drawn
    assert 0 < uniforms.min() < uniforms.max() < 1
    cdf = np.vectorize(lambda z: math.erfc(-z / math.sqrt(2)) / 2)
    for values in (*uniforms.T, cdf(normals[:, 0]), cdf(normals[:, -1]), cdf(normals[:16]).ravel()):
        ordered = np.sort(values.astype(np.float64))
        distance = np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max()
        assert distance < 1.95 / math.sqrt(len(ordered))  # 1 in 1,000


def test_no_number_knows_another(drawn):
    """Correlations between places of a row and between rows at many distances, of numbers and of their squares."""
    uniforms, normals = drawn
    columns = np.hstack([uniforms, normals[:, :40], normals[:, -40:]])
    for values in (columns, columns**2):
        correlations = np.corrcoef(values, rowvar=False)
        off = correlations[~np.eye(len(correlations), dtype=bool)]
        assert np.abs(off).max() < 5 / math.sqrt(len(values))
    z = normals.astype(np.float64)
    for distance in (1, 2, 3, 16, 64, 256, 1024):
        for values in (z, z**2 - 1):
            product = (values[:-distance] * values[distance:]).ravel()
            assert abs(product.mean()) < 4 * product.std() / math.sqrt(product.size)
