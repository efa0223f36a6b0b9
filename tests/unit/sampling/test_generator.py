"""The engine: what an image depends on, what is computed for it, labels, decoding, and three lines of Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_helpers import save_autoencoder
from PIL import Image
from sample_helpers import NAMES, code_of, images_of, latents_of, make_generator, spec, write_model

from mpdit_core import Generator
from mpdit_core.data.manifest import AutoencoderSpec, Normalisation
from mpdit_core.model.blocks import ModulationLayer
from mpdit_core.model.compute import forward_macs, skip_tokens_macs
from mpdit_core.runtime.distributed import World
from mpdit_core.sampling import SamplingOptions
from mpdit_core.sampling.decode_precision import choose_decode_precision
from mpdit_core.sampling.labels import class_order, read_classes
from mpdit_core.size import Size

# Python


def test_images_in_three_lines(model):
    images = Generator(str(model.path), device="cpu").images(classes=["3", "eight"], guidance_scale=2.0, num_steps=4)
    assert [type(image) for image in images] == [Image.Image] * 2
    expected = images_of(model, num_samples=2, classes="3,8", batch_size=32)
    for image, pixels in zip(images, expected, strict=True):
        assert np.array_equal(np.asarray(image.convert("RGB")).transpose(2, 0, 1), pixels)


def test_a_generator_with_other_options_shares_what_is_loaded(model):
    first = make_generator(model, decode=True)
    other = first.changed(num_samples=3, sampler="heun", seed=1)
    assert other.network is first.network
    assert other.autoencoder is first.autoencoder
    assert (other.num_samples, other.sampler.order, other.options.seed) == (3, 2, 1)
    assert (first.num_samples, first.sampler.order, first.options.seed) == (10, 1, 0)
    assert len(first.images(num_samples=5, num_steps=1)) == 5


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"classes": ["elephant"]}, "no-such-class"),
        ({"num_step": 3}, "unknown-key"),
        ({"num_steps": 0}, "invalid-value"),
        ({"guidance_interval": (0.8, 0.1)}, "invalid-value"),
        ({"guidance": "apg", "guidance_options": {"theta": 1}}, "unknown-key"),
    ],
)
def test_options_that_cannot_be(model, changes, code):
    assert code_of(make_generator(model, decode=True).images, **changes) == code


# What an image depends on


@pytest.mark.parametrize("sampler", ["euler", "euler-maruyama"])
def test_bit_equal_for_any_number_of_processes_and_threads(model, sampler):
    alone = latents_of(model, sampler=sampler)
    parts = [latents_of(model, sampler=sampler, world=World(rank, 2)) for rank in (0, 1)]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    threaded = latents_of(model, sampler=sampler)
    torch.set_num_threads(before)
    both = parts[0] | parts[1]
    assert sorted(alone) == sorted(both) == list(range(10))
    for i, x in alone.items():
        assert torch.equal(x, both[i])
        assert torch.equal(x, threaded[i])


@pytest.mark.parametrize("sampler", ["euler", "euler-maruyama"])
def test_nearly_equal_for_another_batch_size_or_count(model, sampler):
    alone = latents_of(model, sampler=sampler)
    for other in (latents_of(model, sampler=sampler, batch_size=7), latents_of(model, sampler=sampler, num_samples=5)):
        for i, x in other.items():
            assert torch.allclose(x, alone[i], atol=1e-4)


def test_seed_index_label_and_guidance_matter(model):
    alone = latents_of(model)
    assert not torch.allclose(alone[0], latents_of(model, seed=1)[0], atol=1e-2)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    assert not torch.allclose(alone[0], latents_of(model, classes="3")[0], atol=1e-4)
    assert not torch.allclose(alone[0], latents_of(model, guidance_scale=1.0)[0], atol=1e-4)


def test_bfloat16_stays_close(model):
    narrow, wide = latents_of(model, precision="bfloat16"), latents_of(model)
    error = torch.stack([(narrow[i] - wide[i]).abs().mean() for i in wide]).mean()
    assert 0 < error < 2e-2
    assert narrow[0].dtype == torch.float32


def test_autoguidance(model, tmp_path):
    weak = write_model(tmp_path / "weak", seed=5)
    guided = latents_of(model, guide=str(weak.path))
    assert not torch.allclose(guided[0], latents_of(model)[0], atol=1e-3)
    same = latents_of(model, guide=str(model.path))  # away from itself: nothing
    assert torch.allclose(same[0], latents_of(model, guidance_scale=1.0)[0], atol=1e-4)


def test_a_guide_must_fit(model, tmp_path):
    other = write_model(tmp_path / "other", num_classes=3)
    assert code_of(make_generator, model, guide=str(other.path)) == "guide-does-not-fit"


def test_skipped_tokens_must_be_there_and_leave_no_room_for_a_guide(model, tmp_path):
    as_dit = write_model(tmp_path / "dit", class_tokens=0)
    assert code_of(make_generator, as_dit, guidance="skip-tokens") == "no-class-tokens"
    assert code_of(make_generator, model, guidance="skip-tokens", guide=str(model.path)) == "conflicting-options"


@pytest.mark.parametrize("rule", ["cfg-zero", "apg", "skip-tokens"])
def test_rules_of_guidance_matter_and_do_not_depend_on_the_batch(model, rule):
    alone = latents_of(model, guidance=rule)
    assert not torch.allclose(alone[0], latents_of(model)[0], atol=1e-3)
    for other in (latents_of(model, guidance=rule, batch_size=7), latents_of(model, guidance=rule, num_samples=5)):
        for i, x in other.items():
            assert torch.allclose(x, alone[i], atol=1e-4)


# What is computed


def test_evaluations_are_counted(model):
    def counts(**changes):
        batch = next(make_generator(model, **changes).batches([0]))
        return batch.nfe, batch.passes, batch.saved

    assert counts() == (4, 8, 0)
    assert counts(guidance_scale=1.0) == (4, 4, 0)
    assert counts(guidance_interval=(0.4, 0.8)) == (4, 6, 2)  # of t = 1, 0.75, 0.5, 0.25 two lie within
    assert counts(sampler="heun") == (8, 16, 0)
    assert counts(guidance="apg") == (4, 8, 0)
    assert counts(guidance="cfg-zero", guidance_options={"zero_init": 0.5}) == (4, 4, 4)
    nfe, passes, saved = counts(guidance="skip-tokens", guidance_interval=(0.4, 0.8))
    share = skip_tokens_macs(model.config.model) / forward_macs(model.config.model)
    assert (nfe, passes, saved) == (4, pytest.approx(4 + 2 * share), pytest.approx(2 * share))


@pytest.mark.parametrize("as_dit", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "euler-maruyama", "dpm"])
def test_time_and_modulation_are_computed_once_per_evaluation(model, tmp_path, as_dit, sampler):
    """Guided: one pass of both halves together; time and shared modulation as one row for all images.

    As in DiT, where the class is added to the time and every block has its own modulation: once per block.
    """
    folder = write_model(tmp_path / "m", class_tokens=0, modulation="per-block") if as_dit else model
    made = make_generator(folder, sampler=sampler)
    network, steps = made.network, made.sampler.num_steps
    rows: dict[str, list[int]] = {"network": [], "time": [], "modulation": []}
    blocks = sum(stage.depth for stage in network.config.stages)

    def note(name):
        return lambda _module, inputs, _output: rows[name].append(len(inputs[0]))

    network.register_forward_hook(note("network"))
    network.time_embedding.register_forward_hook(note("time"))
    for module in network.modules():
        if isinstance(module, ModulationLayer):
            module.register_forward_hook(note("modulation"))
    velocity = made.velocity([0, 1, 2])
    made.integrate(velocity, *made.noise([0, 1, 2]))
    assert velocity.nfe == steps
    assert rows["network"] == [6] * steps
    assert rows["time"] == [1] * steps
    assert rows["modulation"] == ([6] * (steps * (blocks + 1)) if as_dit else [1] * steps)


# Labels


def labels_of(classes, count=10, seed=0, names=NAMES):
    return [*map(read_classes(classes, class_names=names, seed=seed), range(count))]


def test_labels():
    assert labels_of("all", 12) == [*range(10), 0, 1]
    assert labels_of("3,1", 4) == [3, 1, 3, 1]
    assert labels_of("Two, nine", 3) == [2, 9, 2]
    assert labels_of("goldfish,1", 2) == [5, 1]
    assert labels_of("goldfish, carassius auratus", 2) == [5, 5]
    assert labels_of((3, "goldfish, Carassius auratus"), 3) == [3, 5, 3]
    assert labels_of("random", seed=1) == labels_of("random", seed=1) != labels_of("random", seed=2)


def test_all_classes_are_balanced_and_of_all_kinds_from_the_start():
    assert sorted(class_order(1000)) == list(range(1000))
    assert max(class_order(1000)[:16]) > 800
    assert class_order(10) == tuple(range(10))


@pytest.mark.parametrize(
    ("classes", "code"),
    [("10", "no-such-class"), ("fife", "no-such-class"), ((), "no-such-class"), ("crane", "ambiguous-class")],
)
def test_unknown_and_ambiguous_classes(classes, code):
    assert code_of(labels_of, classes) == code


def test_numbers_that_are_names_of_other_classes_are_refused():
    names = tuple(sorted(str(i) for i in range(12)))  # 0, 1, 10, 11, 2, …
    assert labels_of("0,1", 2, names=names) == [0, 1]  # name and id agree
    for classes in ("10", "2", ("10",), "1,11"):
        assert code_of(labels_of, classes, names=names) == "ambiguous-class"
    assert labels_of("id:10,name:10", 2, names=names) == [10, 2]
    assert labels_of((10,), 1, names=names) == [10]
    assert code_of(labels_of, "9" * 5000, names=names) == "no-such-class"


# Decoding


def test_decoding_in_bfloat16_only_within_one_level(tmp_path, monkeypatch):
    """By an autoencoder of Stable Diffusion's form, thin and random, whose pixels vary as those of images do."""
    at = AutoencoderSpec(id=str(save_autoencoder(tmp_path / "kl")), factor=8, channels=4)
    normalisation = Normalisation(name="measured", mean=(0.0,) * 4, std=(1 / 0.18215,) * 4)
    latents = spec().model_copy(
        update={"resolution": Size.square(128), "autoencoder": at, "normalisation": normalisation}
    )
    model = write_model(tmp_path / "m", latents=latents, channels=4)
    float32, bfloat16 = (make_generator(model, decode=True, precision=p) for p in ("float32", "bfloat16"))
    assert [g.types.decoder for g in (float32, bfloat16)] == ["float32", "bfloat16"]
    asked = bfloat16.changed(precision="float32")
    assert [g.types.decoder for g in (asked, bfloat16)] == ["float32", "bfloat16"]
    x, _ = float32.noise([0, 1])
    wide, narrow = float32.decode(x).float(), bfloat16.decode(x).float()
    assert wide.std() > 20
    assert 0 < (wide - narrow).abs().mean() <= 1
    monkeypatch.setattr("mpdit_core.sampling.decode_precision.MAX_DIFFERENCE", 0.1)
    assert bfloat16.autoencoder
    assert choose_decode_precision("bfloat16", bfloat16.autoencoder, latents) == "float32"
    assert bfloat16.autoencoder.decode_precision == "bfloat16"  # it was only tried


def test_cuda_graphs_are_refused_elsewhere(model):
    assert code_of(make_generator, model, compile="graphs") == "no-cuda-graphs"
    assert code_of(make_generator(model).changed, compile="graphs") == "no-cuda-graphs"
    apart = SamplingOptions(compile="graphs", guidance="skip-tokens")  # its stages are called one by one
    assert code_of(Generator, model, apart, device=torch.device("cuda")) == "conflicting-options"


def test_a_model_without_an_autoencoder_gives_latents_alone(tmp_path):
    bare = write_model(tmp_path / "bare", latents=False)
    assert len(latents_of(bare)) == 10
    assert code_of(make_generator, bare, decode=True) == "no-autoencoder"
