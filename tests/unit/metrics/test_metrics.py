"""The metrics against independent numpy/scipy formulas, and the acceptance lines of the protocol."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from mpdit_core.evaluation.accumulator import Tally
from scipy.spatial.distance import cdist

from mpdit_core.api import Features
from mpdit_core.errors import UserError
from mpdit_core.metrics.neighbours import precision_recall
from mpdit_core.metrics.scores import InceptionScore, frechet_distance, kernel_distance
from mpdit_core.metrics.statistics import Gaussian, RunningStatistics, statistics_of
from mpdit_core.runtime.distributed import World

CPU = torch.device("cpu")


def digit_features(count: int = 600) -> torch.Tensor:
    """Real features: pixels of scans, [count, 64] float32."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits(return_X_y=True)[0][:count]).float() / 16


def rows(count: int, size: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=draw) / size**0.5
    return torch.relu(torch.randn(count, size, generator=draw) @ mix + 0.3)


def adm_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """ADM's formula, with scipy's matrix square root."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    away = x.mean(0) - y.mean(0)
    return float(away @ away + np.trace(a) + np.trace(b) - 2 * np.trace(np.real(root)))


def brute_force(reference: np.ndarray, samples: np.ndarray, k: int = 3) -> tuple[float, float]:
    def radii(x: np.ndarray) -> np.ndarray:
        return np.sort(cdist(x, x), axis=1)[:, k]

    reference, samples = reference.astype(np.float64), samples.astype(np.float64)
    between = cdist(samples, reference)
    return float((between <= radii(reference)).any(1).mean()), float((between <= radii(samples)[:, None]).any(0).mean())


@pytest.mark.parametrize("batch", [1, 7, 512, 1000])
def test_streamed_statistics_are_those_of_numpy(batch: int):
    x = rows(1000, 40, 0) + 100
    running = RunningStatistics(40)
    for part in x.split(batch):
        running.add(part)
    gaussian = running.gaussian()
    expected = np.cov(x.double().numpy(), rowvar=False)
    assert np.abs(gaussian.covariance.numpy() - expected).max() < 1e-12 * np.abs(expected).max()
    assert np.abs(gaussian.mean.numpy() - x.double().numpy().mean(0)).max() < 1e-12 * 100


def test_statistics_refuse_what_would_poison_them():
    running = RunningStatistics(3)
    with pytest.raises(ValueError, match="NaN"):
        running.add(torch.tensor([[1.0, float("nan"), 0.0]]))
    with pytest.raises(ValueError, match="no covariance"):
        running.gaussian()


def test_frechet_is_adms_with_more_rows_than_features():
    x, y = rows(400, 64, 1), rows(300, 64, 2)
    expected = adm_frechet(x.numpy(), y.numpy())
    assert frechet_distance(statistics_of(x), statistics_of(y)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Matrix is singular")  # that is the point
@pytest.mark.parametrize(("counts", "relative", "absolute"), [((900, 800), 1e-6, 0), ((40, 50), 0, 1e-3)])
def test_frechet_of_real_features_is_adms(counts: tuple[int, int], relative: float, absolute: float):
    """Pixels of scans: some are always nought, so that the covariance is singular with many rows too."""
    both = digit_features(sum(counts))
    x, y = both[: counts[0]], both[counts[0] :]
    assert torch.linalg.matrix_rank(statistics_of(x).covariance) < 64
    expected = adm_frechet(x.numpy(), y.numpy())
    assert expected > 0.1
    wanted = pytest.approx(expected, rel=relative, abs=absolute)
    assert frechet_distance(statistics_of(x), statistics_of(y)) == wanted
    assert frechet_distance(statistics_of(x), statistics_of(y), rows_a=x, rows_b=y) == wanted


def test_frechet_of_few_rows_agrees_by_all_three_ways():
    x, y = rows(50, 128, 3), rows(70, 128, 4)
    a, b = statistics_of(x), statistics_of(y)
    exact = frechet_distance(a, b, rows_a=x, rows_b=y)
    half = frechet_distance(a, b, rows_b=y)
    none = frechet_distance(a, b)
    centred = [(r.double() - r.double().mean(0)).numpy() / np.sqrt(len(r) - 1) for r in (x, y)]
    nuclear = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    away = (a.mean - b.mean).numpy()
    expected = away @ away + np.trace(a.covariance) + np.trace(b.covariance) - 2 * nuclear
    assert exact == pytest.approx(expected, rel=1e-10)
    assert half == pytest.approx(expected, rel=1e-6)
    assert none == pytest.approx(expected, rel=1e-6)
    assert none == pytest.approx(adm_frechet(x.numpy(), y.numpy()), abs=1e-3)


@pytest.mark.parametrize("count", [40, 500])
def test_distance_to_itself_is_nought(count: int):
    gaussian = statistics_of(rows(count, 96, 5))
    assert abs(frechet_distance(gaussian, gaussian)) < 1e-5


def test_scaled_covariance_has_a_closed_form():
    a = statistics_of(rows(400, 64, 6))
    b = Gaussian(a.count, a.mean, 2.25 * a.covariance)
    assert frechet_distance(a, b) == pytest.approx(float(torch.trace(a.covariance)) * 0.25, rel=1e-8)


def test_inception_score_in_chunks_of_5000_in_any_order():
    logits = torch.randn(12_000, 20, generator=torch.Generator().manual_seed(0)) * 3
    logits[0, 0], logits[1, 1] = 70, -70
    score = InceptionScore(12_000, 20)
    for part in torch.randperm(12_000, generator=torch.Generator().manual_seed(1)).split(777):
        score.add(part, logits[part])
    x = logits.double().numpy()
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    parts = [p[:5000], p[5000:10000], p[10000:]]
    expected = [np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in parts]
    assert len(score.counts) == 3
    assert score.score().value == pytest.approx(np.mean(expected), rel=1e-6)


def test_precision_and_recall_are_those_of_brute_force():
    x = digit_features()
    reference, samples = x[:350], x[350:] + 0.05 * rows(250, 64, 7)
    expected = brute_force(reference.numpy(), samples.numpy())
    assert precision_recall(reference, samples) == expected
    assert precision_recall(samples, reference) == expected[::-1]
    assert precision_recall(reference, samples, half=True) == pytest.approx(expected, abs=0.01)


def test_collapsed_samples_have_precision_and_no_recall():
    reference = digit_features()
    near = reference[5] + 0.01 * torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    precision, recall = precision_recall(reference, near)
    assert precision > 0.7
    assert recall < 0.01
    assert precision_recall(reference, reference[5:6].repeat(50, 1)) == (1.0, pytest.approx(1 / 600))


def test_too_few_for_neighbours():
    with pytest.raises(UserError, match="more than 3"):
        precision_recall(torch.randn(3, 4), torch.randn(10, 4))


def test_kernel_distance_of_real_features_is_its_formula():
    both = digit_features(400)
    x, y = both[:200].double().numpy(), both[200:].double().numpy()
    xx, yy, xy = ((a @ b.T / 64 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = [kernel[~np.eye(200, dtype=bool)].mean() for kernel in (xx, yy)]
    assert kernel_distance(both[:200], both[200:]).value == pytest.approx(sum(within) - 2 * xy.mean(), rel=1e-6)


def test_kernel_distance_is_torch_fidelitys():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = rows(1500, 32, 8), rows(1200, 32, 9)
    theirs = kid_features_to_metric(x, y, verbose=False)
    mine = kernel_distance(y, x)
    assert mine.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert mine.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)  # theirs: float32


def test_a_killed_pass_goes_on_and_gives_the_same(tmp_path):
    x, y = rows(90, 12, 10), rows(90, 5, 11)
    whole = Tally(90, keep=range(90), device=CPU, folder=None)
    whole.add(range(90), Features(x, None, y))
    whole.finish(World())
    first = Tally(90, keep=range(90), device=CPU, folder=tmp_path / "p")
    first.add(range(0, 40), Features(x[:40], None, y[:40]))
    first.save()
    second = Tally(90, keep=range(90), device=CPU, folder=tmp_path / "p")
    todo = second.todo(range(90))
    assert todo == list(range(40, 90))
    second.add(todo, Features(x[todo], None, y[todo]))
    second.finish(World())
    assert torch.allclose(second.gaussian().covariance, whole.gaussian().covariance, rtol=1e-10)
    assert torch.equal(second.kept_rows(), x)
    score, expected = second.score_of_logits(), whole.score_of_logits()
    assert score is not None
    assert expected is not None
    assert score.value == pytest.approx(expected.value, rel=1e-12)
