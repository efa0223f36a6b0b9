"""The metrics against independent numpy/scipy formulas, and the acceptance lines of the protocol."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import cdist

from mpdit_core.api import Features
from mpdit_core.errors import UserError
from mpdit_core.metrics.accumulator import FeatureAccumulator
from mpdit_core.metrics.neighbours import precision_recall
from mpdit_core.metrics.scores import InceptionScore, frechet_distance, kernel_distance
from mpdit_core.metrics.similarity import MAX_PSNR, psnr, ssim
from mpdit_core.metrics.statistics import Gaussian, RunningStatistics, statistics_of


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
    running = RunningStatistics.empty(40)
    for part in x.split(batch):
        running = running.plus(part)
    gaussian = running.gaussian()
    expected = np.cov(x.double().numpy(), rowvar=False)
    assert np.abs(gaussian.covariance.numpy() - expected).max() < 1e-12 * np.abs(expected).max()
    assert np.abs(gaussian.mean.numpy() - x.double().numpy().mean(0)).max() < 1e-12 * 100


def test_statistics_refuse_what_would_poison_them():
    running = RunningStatistics.empty(3)
    with pytest.raises(ValueError, match="NaN"):
        running.plus(torch.tensor([[1.0, float("nan"), 0.0]]))
    with pytest.raises(ValueError, match="no covariance"):
        running.gaussian()


def test_frechet_is_adms_with_more_rows_than_features():
    x, y = rows(400, 64, 1), rows(300, 64, 2)
    expected = adm_frechet(x.numpy(), y.numpy())
    assert frechet_distance(statistics_of(x), statistics_of(y)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Matrix is singular")  # that is the point
@pytest.mark.parametrize(("counts", "relative", "absolute"), [((900, 800), 1e-6, 0), ((40, 50), 0, 1e-3)])
def test_frechet_of_real_features_is_adms(counts: tuple[int, int], relative: float, absolute: float):
    """Pixels of scans: some are always zero, so that the covariance is singular with many rows too."""
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
def test_distance_to_itself_is_zero(count: int):
    gaussian = statistics_of(rows(count, 96, 5))
    assert abs(frechet_distance(gaussian, gaussian)) < 1e-5


def test_scaled_covariance_has_a_closed_form():
    a = statistics_of(rows(400, 64, 6))
    b = Gaussian(a.count, a.mean, 2.25 * a.covariance)
    assert frechet_distance(a, b) == pytest.approx(float(torch.trace(a.covariance)) * 0.25, rel=1e-8)


def test_inception_score_in_chunks_of_5000_in_any_order():
    logits = torch.randn(12_000, 20, generator=torch.Generator().manual_seed(0)) * 3
    logits[0, 0], logits[1, 1] = 70, -70
    score = InceptionScore.empty(12_000, 20)
    for part in torch.randperm(12_000, generator=torch.Generator().manual_seed(1)).split(777):
        score = score.plus(part, logits[part])
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
    with pytest.raises(UserError) as caught:
        precision_recall(torch.randn(3, 4), torch.randn(10, 4))
    assert caught.value.code == "too-few-images"


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


def features(indices: list[int] | range) -> Features:
    """Features of numbered images: 12 pool features far from zero, 5 spatial ones, 4 classes."""
    x = torch.from_numpy(np.stack([np.random.RandomState(i).randn(21) for i in indices])).float()
    return Features(x[:, :12] + 50, x[:, 12:17], x[:, 17:])


def assert_same_bits(a: FeatureAccumulator, b: FeatureAccumulator) -> None:
    left, right = a.state(), b.state()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_an_accumulator_is_continued_from_its_state():
    whole, first, second = (FeatureAccumulator(90, keep=range(10, 90)) for _ in range(3))
    for part in (range(40), range(40, 90)):
        whole.add(features(part))
    first.add(features(range(40)))
    second.load(first.state())
    assert second.done == 40
    second.add(features(range(40, 90)))
    assert_same_bits(second, whole)
    expected = features(range(90))
    assert torch.equal(second.kept_rows(), expected.pool[10:])
    gaussian = statistics_of(expected.pool)
    assert torch.allclose(second.gaussian().covariance, gaussian.covariance, rtol=1e-10)
    assert [half.count for half in second.half_gaussians()] != [90]
    assert sum(half.count for half in second.half_gaussians()) == 90


@pytest.mark.parametrize("broken", [RunningStatistics, InceptionScore])
def test_an_addition_that_is_interrupted_leaves_nothing_behind(monkeypatch, broken):
    """Wherever it is interrupted: in the sums of one kind of features, after those of another."""
    accumulator, expected = FeatureAccumulator(90, keep=range(90)), FeatureAccumulator(90, keep=range(90))
    for one in (accumulator, expected):
        one.add(features(range(40)))
    original, calls = broken.plus, []

    def interrupted(self, *arguments):
        calls.append(self)
        if len(calls) == (3 if broken is RunningStatistics else 1):  # two halves, then the spatial features
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(broken, "plus", interrupted)
    with pytest.raises(KeyboardInterrupt):
        accumulator.add(features(range(40, 90)))
    assert_same_bits(accumulator, expected)


def test_an_accumulator_refuses_too_many_and_too_few_images():
    accumulator = FeatureAccumulator(9)
    accumulator.add(features(range(5)))
    with pytest.raises(ValueError, match="5 of 9"):
        accumulator.gaussian()
    with pytest.raises(ValueError, match="10 images"):
        accumulator.add(features(range(5)))


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def test_both_figures_are_those_of_scikit_image():
    """`peak_signal_noise_ratio` and `structural_similarity` of scikit-image 0.26.0, with Gaussian weights, standard
    deviation 1.5 and population covariance."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    noisy = np.clip(image.astype(int) + random.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)
    assert psnr(as_batch(image), as_batch(noisy)).item() == pytest.approx(26.82792671585299, abs=1e-9)
    assert ssim(as_batch(image), as_batch(noisy)).item() == pytest.approx(0.9878161555650081, abs=1e-12)
    assert psnr(as_batch(image), as_batch(image)).item() == MAX_PSNR
    assert ssim(as_batch(image), as_batch(image)).item() == 1
