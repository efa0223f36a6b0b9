"""The extractor keeps the contract, and its distance grows with the damage to the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mpdit_efficientnet import EfficientNet
from PIL import Image, ImageDraw, ImageFilter

from mpdit_core.testing import check_features

COUNT, SIDE = 16, 64


def test_keeps_the_contract():
    check_features(EfficientNet(), side=32)


def test_its_map_says_what_lies_where():
    """The head of the network over the map is the network; a change in one corner changes this corner's features."""
    teacher = EfficientNet()
    teacher.load(torch.device("cpu"))
    images = torch.from_numpy(np.stack([np.asarray(scenes(3)[0].resize((256, 256)))])).permute(0, 3, 1, 2)
    found = teacher.feature_map(images)
    assert found.shape == (1, 320, 8, 8)
    network = teacher.network
    head = network._swish(network._bn1(network._conv_head(found)))
    assert torch.equal(head, network.extract_features((images.float() - 127) / 128))
    changed = images.clone()
    changed[..., :64, :64] = 255 - changed[..., :64, :64]
    gap = (teacher.feature_map(changed) - found).abs().mean(dim=1)[0]
    assert gap[:2, :2].mean() > 3 * gap[4:, 4:].mean()


def scenes(seed: int) -> list[Image.Image]:
    """Images drawn like photographs: a sky of soft clouds, a ground, and shapes of many colours in front."""
    random = np.random.default_rng(seed)
    pictures = []
    for _ in range(COUNT):
        colour = random.integers(40, 256, (2, 3))
        clouds = Image.fromarray(random.integers(0, 256, (6, 6), np.uint8)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        picture = Image.composite(*(Image.new("RGB", (SIDE, SIDE), tuple(c)) for c in colour.tolist()), clouds)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, int(random.integers(30, 50)), SIDE, SIDE), fill=tuple(random.integers(20, 160, 3).tolist()))
        for _ in range(int(random.integers(3, 8))):
            x, y, r = (int(v) for v in (*random.integers(0, SIDE, 2), random.integers(4, 18)))
            shape = random.choice([draw.ellipse, draw.rectangle])
            shape((x, y, x + r, y + r), fill=tuple(random.integers(0, 256, 3).tolist()), outline="black")
        pictures.append(picture.filter(ImageFilter.GaussianBlur(0.5)))
    return pictures


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of rows of features; tr sqrt(Σa Σb) is the sum of the singular values of A Bᵀ / (n - 1)."""
    x, y = a - a.mean(0), b - b.mean(0)
    squares = ((x**2).sum() + (y**2).sum() - 2 * np.linalg.norm(x @ y.T, "nuc")) / (len(a) - 1)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + squares)


@pytest.fixture(scope="module")
def distances() -> dict[str, float]:
    """Distance from one reference to other images of its kind, intact and damaged."""
    extractor = EfficientNet()
    extractor.load(torch.device("cpu"))
    random = np.random.default_rng(7)
    grain = random.standard_normal((COUNT, SIDE, SIDE, 3))

    def features(pictures: list[Image.Image], noise: float = 0.0) -> np.ndarray:
        values = np.stack([np.asarray(picture, float) for picture in pictures]) + noise * grain
        images = torch.from_numpy(values.round().clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)
        return extractor(images).pool.double().numpy()

    reference, others = features(scenes(1)), scenes(2)
    return {
        "clean": distance(reference, features(others)),
        "light noise": distance(reference, features(others, 8)),
        "strong noise": distance(reference, features(others, 60)),
        "light blur": distance(reference, features([p.filter(ImageFilter.GaussianBlur(1)) for p in others])),
        "strong blur": distance(reference, features([p.filter(ImageFilter.GaussianBlur(4)) for p in others])),
        "collapse": distance(reference, features([others[0]] * COUNT)),
    }


@pytest.mark.parametrize(
    "order", ["clean < light noise < strong noise", "clean < light blur < strong blur", "clean < collapse"]
)
def test_the_distance_grows_with_the_damage(distances: dict[str, float], order: str):
    values = [distances[name] for name in order.split(" < ")]
    assert values == sorted(values), distances
    assert values[-1] > 1.2 * values[0], distances
