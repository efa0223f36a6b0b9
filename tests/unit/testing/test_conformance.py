"""The conformance checks themselves: what is right passes, what is wrong is found.

Each shipped package's own tests check its classes; tests of evaluation check the features `inception`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from mpdit_core import plugins
from mpdit_core.api import Features, Item
from mpdit_core.plugins.finding import entries
from mpdit_core.settings import Options, setting
from mpdit_core.testing import ConformanceError, check_command, check_dataset, check_features, check_sampler


@pytest.mark.parametrize("name", [entry.name for entry in entries("samplers") if entry.is_ours])
def test_samplers_keep_the_contract(name: str):
    sampler = plugins.load("samplers", name)
    assert check_sampler(sampler).order >= sampler.order - 0.15


@pytest.mark.parametrize("name", ["euler", "euler-maruyama"])
def test_a_claim_too_high_is_found(name: str):
    claims = type("Claims", (plugins.load("samplers", name),), {"order": 2})
    with pytest.raises(ConformanceError, match="order 2, as claimed"):
        check_sampler(claims)


def test_a_sampler_that_draws_its_own_noise_is_measured_from_samples():
    class Own(plugins.load("samplers", "euler-maruyama")):
        def steps(self, velocity_fn, noise, generator=None):
            if callable(generator):
                raise TypeError("not a generator")
            return super().steps(velocity_fn, noise, generator)

    check_sampler(Own)


@dataclass
class Squares:
    fault: str = ""

    def class_names(self):
        return ["a", "a"] if self.fault == "names" else ["a", "b"]

    def items(self):
        keys = [0, 0, 1] if self.fault == "keys" else [0, 1, 2]
        if self.fault == "order":
            random.shuffle(keys)
        return [Item(f"{key}", 2 if self.fault == "labels" else key % 2) for key in keys]

    def image(self, index):
        return Image.new("L", (8, 8), random.randrange(256) if self.fault == "pictures" else index)

    def fingerprint(self):
        return f"{id(self)}" if self.fault == "fingerprint" else "squares"


def test_a_bad_data_set_is_found():
    check_dataset(Squares())
    for fault, words in {
        "names": "no class name twice", "keys": "no key twice", "order": "the same items", "labels": "labels as int",
        "pictures": "to be the same every time", "fingerprint": "the same fingerprint",
    }.items():  # fmt: skip
        random.seed(1)
        with pytest.raises(ConformanceError, match=words):
            check_dataset(Squares(fault))


@dataclass
class Means:
    name: ClassVar[str] = "means"
    fault: str = ""

    def load(self, device):
        pass

    def __call__(self, images):
        x = images.float().mean(dim=(2, 3))
        if self.fault == "batch":
            x = x - x.mean(dim=0)
        if self.fault == "chance":
            x = x + torch.randn_like(x)
        if self.fault == "autocast":
            x = x @ torch.full((3, 3), 0.3)
        if self.fault == "same":
            x = torch.ones_like(x)
        if self.fault == "half":
            x = x.half()
        return Features(pool=x / 0 if self.fault == "infinite" else x)

    def fingerprint(self):
        return str(random.random()) if self.fault == "fingerprint" else "means"


def test_a_bad_extractor_is_found():
    check_features(Means())
    for fault, words in {
        "batch": "whatever the batch size", "chance": "the same the second time", "autocast": "under autocast",
        "same": "other pool for other images", "half": "float32", "infinite": "finite",
        "fingerprint": "the same fingerprint",
    }.items():  # fmt: skip
        with pytest.raises(ConformanceError, match=words):
            check_features(Means(fault=fault))


class Described(Options):
    side: int = setting(3, "side of it")


class Undescribed(Options):
    side: int = 3


def job(options, *, report):
    pass


def command(**parts: Any) -> Any:
    return SimpleNamespace(**parts)


def test_a_bad_command_is_found():
    good: dict[str, Any] = {"options": Described, "job": job, "help": "Do it."}
    check_command(command(**good))
    for change, words in (
        ({"options": Undescribed}, "a description of the option side"), ({"job": lambda options: None}, "job"),
        ({"help": " "}, "options, job and help"),
    ):  # fmt: skip
        with pytest.raises(ConformanceError, match=words):
            check_command(command(**good | change))
