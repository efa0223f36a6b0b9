"""Correctness, speed and memory on a GPU, in one command and a few minutes: `python benchmarks/gpu.py --minutes 9`.

The most important pieces come first: whether numbers are right (bfloat16, compiled, CUDA graphs, NCCL, resume); speed
and memory of training against the dense DiTs; guided sampling; a Stable Diffusion autoencoder and the Inception
network; a profile of the training with the lowest utilisation. A piece is skipped if the time left is too short for it,
or a package is missing. The file of results is written after every piece, so a run that is stopped loses only one.

`--device cpu --tiny` runs every piece with the smallest sizes. It takes a minute, and its speeds mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from report import read_result, write_result
from sample import random_model
from torch import Tensor
from train_step import Variant, make_batch, make_step, measure

from mpdit_core.config import ComputeType, RunConfig
from mpdit_core.data.manifest import AutoencoderSpec
from mpdit_core.flow.guidance import Guidance, GuidedVelocity
from mpdit_core.flow.guidance.rule import Network
from mpdit_core.model.cuda_graphs import RecordedNetwork
from mpdit_core.model.transformer import MPDiT
from mpdit_core.presets import load_preset
from mpdit_core.reporting import Event, Step
from mpdit_core.runtime.device import deterministic, select_device, synchronize
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.precision import autocast
from mpdit_core.sampling import Generator, SamplingOptions
from mpdit_core.settings import merge, validate
from mpdit_core.size import Size
from mpdit_core.training.batches import Batch
from mpdit_core.training.state.trainer import Trainer

Values = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """One measurement. `seconds`: how long it may take, with its start; it is skipped when less time is left."""

    name: str
    seconds: float
    run: Callable[[], Values]


@dataclass
class Session:
    """Device and sizes for all pieces, and their results."""

    device: torch.device
    tiny: bool
    folder: Path
    results: dict[str, Values] = field(default_factory=dict)

    @property
    def presets(self) -> dict[str, int]:
        """Presets to train, and the batch sizes that they are trained with."""
        return {"tiny": 2} if self.tiny else {"xl-256": 128, "xl-512": 32, "v2-xl-512": 32, "b-256": 256}

    @property
    def modes(self) -> tuple[Literal["off", "on", "graphs"], ...]:
        return ("off", "on", "graphs") if self.device.type == "cuda" else ("off", "on")

    @property
    def small(self) -> str:
        """The preset whose numbers are compared."""
        return "tiny" if self.tiny else "b-256"

    def variant(self, preset: str, **settings: Any) -> Variant:
        return Variant(preset=preset, device=self.device.type, **{"batch_size": self.presets[preset], **settings})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: a test of this file")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="pieces whose names begin with this; repeatable. Other pieces keep their result of the same day",
    )  # fmt: skip
    arguments = parser.parse_args()
    end, path = time.monotonic() + 60 * arguments.minutes, None
    with tempfile.TemporaryDirectory() as folder:
        session = Session(select_device(arguments.device), arguments.tiny, Path(folder))
        if arguments.only:
            session.results |= read_result("gpu").get("pieces", {})
        for piece in pieces(session):
            if arguments.only and not piece.name.startswith(tuple(arguments.only)):
                continue
            found = attempt(piece, left=end - time.monotonic(), tiny=arguments.tiny)
            session.results[piece.name] = found
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items() if k != "runs"}
            print(f"{piece.name}: {shown}", flush=True)
            path = write_result("gpu", {"command": sys.argv[1:], "pieces": session.results})
    print(path)


def attempt(piece: Piece, *, left: float, tiny: bool) -> Values:
    """The result of the piece; or why there is none."""
    if left < (0 if tiny else piece.seconds):
        return {"skipped": f"it may take {piece.seconds:.0f} s, {left:.0f} s are left"}
    started = time.monotonic()
    try:
        return {**piece.run(), "took": round(time.monotonic() - started, 1)}
    except ImportError as error:
        return {"skipped": f"the package {error.name} is not installed"}
    except Exception as error:  # an error in one piece must not stop the others
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def pieces(session: Session) -> Iterator[Piece]:
    """All pieces, the most important first."""
    first, *others = session.presets
    last = list(session.presets)[-1]

    def steps(preset: str, seconds: float, mode: str, *, dense: bool = False) -> Piece:
        name = f"train dense of {preset} {mode}" if dense else f"train {preset} {mode}"
        return Piece(name, seconds, partial(train, session, preset, mode=mode, dense=dense))

    yield Piece("right: types and compiling", 30, partial(compare_modes, session))
    yield Piece("right: resume", 35, partial(resume, session))
    yield Piece("right: gradients again", 15, partial(gradients_again, session))
    yield Piece("right: one process of a group", 5, partial(group_of_one, session))
    yield steps(first, 20, "eager")
    yield steps(first, 40, "compiled")
    if "graphs" in session.modes:
        yield steps(first, 20, "graphs")
    yield steps(first, 35, "compiled", dense=True)
    yield Piece(
        f"train {first} compiled, not deterministic", 35,
        partial(train, session, first, mode="compiled", deterministic=False),
    )  # fmt: skip
    for preset, images in ((first, 64), (last, 4)):
        yield Piece(f"evaluate {preset}, {images} images", 25, partial(evaluations, session, preset, images))
    yield Piece("attention", 5, partial(attention_of, session, first))
    yield Piece("autoencoder", 30, partial(autoencoder_rates, session))
    yield Piece("inception", 15, partial(inception_rate, session))
    yield Piece(f"sample {first}", 30, partial(sample_guided, session, first))
    yield Piece(f"a whole run of {last}", 45, partial(whole_run, session, last))
    for preset in others:
        yield steps(preset, 35, "compiled")
        yield steps(preset, 35, "compiled", dense=True)
    yield Piece("profile of the slowest", 20, partial(profile_slowest, session))
    for preset in others:
        yield steps(preset, 20, "eager")
        yield steps(preset, 20, "eager", dense=True)


# Are the numbers right?


def compare_modes(session: Session) -> Values:
    """Differences of guided velocities from those in eager float32, relative to their norm."""
    network, x_t, guided = guided_network(session, session.small, 4, scale=2.0)
    fill_zeros(network)

    @torch.inference_mode()
    def velocities(evaluated: Network, dtype: torch.dtype) -> Tensor:
        velocity = guided(evaluated, dtype)
        return torch.stack([velocity(x_t, t) for t in (0.9, 0.6, 0.3, 0.1)])

    found: Values = {}
    exact = velocities(network, torch.float32)
    for mode in session.modes:
        if mode == "on":
            network.compile_blocks()
        evaluated = RecordedNetwork(network) if mode == "graphs" else network
        for dtype in (torch.float32, torch.bfloat16):
            difference = (velocities(evaluated, dtype) - exact).norm() / exact.norm()
            found[f"{dtype} compile {mode}".removeprefix("torch.")] = difference.item()
    return found


def guided_network(
    session: Session, preset: str, images: int, *, scale: float
) -> tuple[MPDiT, Tensor, Callable[[Network, torch.dtype], GuidedVelocity]]:
    """A network with random weights, x_t, and a function for the guided velocities of the network, also if recorded."""
    config = load_preset(preset).model
    torch.manual_seed(0)
    network = MPDiT(config).to(session.device).eval().requires_grad_(False)
    labels = torch.arange(images, device=session.device) % config.num_classes
    x_t = torch.randn(images, config.channels, *config.input_size, device=session.device)

    def guided(evaluated: Network, dtype: torch.dtype) -> GuidedVelocity:
        return GuidedVelocity(
            evaluated, labels, null_label=config.null_label, guidance=Guidance(scale=scale), dtype=dtype
        )

    return network, x_t, guided


def fill_zeros(module: torch.nn.Module) -> None:
    """Random values for parameters that begin at zero, such as gates; with zeros, blocks would change nothing."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)


def trainer_of(session: Session, compile: Literal["off", "on", "graphs"]) -> tuple[Trainer, list[Batch]]:
    train = {"batch_size": 4, "precision": "bfloat16", "compile": compile}
    config = validate(RunConfig, merge(load_preset(session.small).model_dump(), {"train": train}))
    torch.manual_seed(0)
    batches = [make_batch(config.model, 4).to(session.device) for _ in range(4)]
    return Trainer(config, total_steps=4, device=session.device, world=World()), batches


def resume(session: Session) -> Values:
    """Compares four steps with two steps, a state that another trainer restores, and two steps."""
    found: Values = {}
    for mode in session.modes:
        straight, batches = trainer_of(session, mode)
        broken, _ = trainer_of(session, mode)
        again, _ = trainer_of(session, mode)
        for batch in batches:
            straight.step(batch)
        for batch in batches[:2]:
            broken.step(batch)
        again.restore(broken.state())
        for batch in batches[2:]:
            again.step(batch)
        first, second = straight.model.weights(), again.model.weights()
        found[f"bit-equal, compile {mode}"] = all(torch.equal(first[name], second[name]) for name in first)
    return found


def gradients_again(session: Session) -> Values:
    """Counts the parameters whose gradient differs when the same loss is computed three times."""
    trainer, batch = make_step(session.variant(session.small, batch_size=4 if session.tiny else 64))
    fill_zeros(trainer.model.loss)
    parameters = list(trainer.model.loss.parameters())
    found: Values = {"parameters": len(parameters)}
    for name, context in (("any order", nullcontext), ("deterministic", lambda: deterministic(session.device))):
        taken: list[list[Tensor]] = []
        for _ in range(3):
            with context(), autocast(session.device, torch.bfloat16):
                loss, _ = trainer.model.forward(batch)
                taken.append(list(torch.autograd.grad(loss, parameters)))
        found[f"differ, {name}"] = sum(
            not all(torch.equal(gradients[0], other) for other in gradients[1:])
            for gradients in zip(*taken, strict=True)
        )
    return found


def group_of_one(session: Session) -> Values:
    """Joins a group of one process, and sums a number over it."""
    import torch.distributed as dist

    backend = "nccl" if session.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{session.folder}/group", rank=0, world_size=1)
    try:
        number = torch.full((1,), 3.0, device=session.device)
        dist.all_reduce(number)
        return {"backend": backend, "right": number.item() == 3.0}
    finally:
        dist.destroy_process_group()


# How fast is it?


def train(session: Session, preset: str, **settings: Any) -> Values:
    """Whole training steps in bfloat16; `settings` are those of a `Variant`."""
    variant = session.variant(preset, **settings)
    run = measure(variant, 2 if session.tiny else 10)
    seconds = sorted(run["seconds"])[len(run["seconds"]) // 2]
    rate = run["batch_size"] / seconds
    return {
        "made": {key: getattr(variant, key) for key in ("preset", "dense", "mode", "deterministic")},
        "images_per_second": rate,
        "batch_size": run["batch_size"],
        "utilisation": rate * run["training_flops_per_image"] / max(run["matmul_flops"]["bfloat16"]),
        "matmul_tflops": max(run["matmul_flops"]["bfloat16"]) / 1e12,
        "peak_memory_bytes": run["peak_memory_bytes"],
    }


def whole_run(session: Session, preset: str) -> Values:
    """The job `train` with batches from a folder of random latents, to compare with the bare steps of its preset."""
    from latents_read import write_shards

    from mpdit_core import train as train_job
    from mpdit_core.training import TrainOptions

    config, batch_size, steps = load_preset(preset), session.presets[preset], 4 if session.tiny else 100
    factor = config.resolution.height // config.model.input_size.height
    autoencoder = AutoencoderSpec(id="random", factor=factor, channels=config.model.channels)
    folder, classes = session.folder / "latents", config.model.num_classes
    for _ in write_shards(
        folder, 4 * batch_size, autoencoder=autoencoder, resolution=config.resolution, classes=classes
    ):
        pass
    rates: list[float] = []

    def keep_rate(report: Event) -> None:
        if isinstance(report, Step):
            rates.append(report.images_per_second)

    options = {
        "preset": preset, "latents": folder, "run": session.folder / "run", "steps": steps,
        "device": session.device.type,
        "settings": {"train": {"batch_size": batch_size, "precision": "bfloat16", "log_every": steps // 4}},
    }  # fmt: skip
    train_job(validate(TrainOptions, options), report=keep_rate)
    return {"images_per_second": rates[-1], "batch_size": batch_size, "steps": steps}


def sample_guided(session: Session, preset: str) -> Values:
    """Guided latents of two blocks as `auto` computes them, after one block that records; without the autoencoder."""
    batch_size, num_steps = (2, 2) if session.tiny else (64, 20)
    folder = session.folder / preset
    random_model(folder, load_preset(preset))
    options = SamplingOptions(num_steps=num_steps, batch_size=batch_size, guidance_scale=1.5, precision="bfloat16")
    made = Generator(str(folder), options, device=session.device, num_samples=3 * batch_size, decode=False)
    list(made.batches([0]))
    synchronize(session.device)
    started = time.perf_counter()
    list(made.batches([1, 2]))
    seconds = time.perf_counter() - started
    return {"images_per_second": 2 * batch_size / seconds, "num_steps": num_steps, "batch_size": batch_size}


def evaluations(session: Session, preset: str, images: int) -> Values:
    """Milliseconds of a guided evaluation, with kernels launched one by one and recorded as a CUDA graph."""
    network, x_t, guided = guided_network(session, preset, images, scale=1.5)

    @torch.inference_mode()
    def milliseconds(evaluated: Network) -> float:
        velocity = guided(evaluated, torch.bfloat16)
        return 1000 / rate_of(lambda: velocity(x_t, 0.5), 1, session.device, calls=2 if session.tiny else 20)

    found: Values = {}
    for name in ("eager", "compiled"):
        if name == "compiled":
            network.compile_blocks()
        found[f"{name}, ms"] = milliseconds(network)
        if "graphs" in session.modes:
            found[f"{name} and recorded, ms"] = milliseconds(RecordedNetwork(network))
    return found


def attention_of(session: Session, preset: str) -> Values:
    """Milliseconds of the attention of a training step, forward and backward, by torch's kernels in bfloat16."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    config = load_preset(preset).model
    heads, batch_size = config.num_heads, session.presets[preset]
    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    found: Values = {}
    for stage in config.stages:
        length = config.class_tokens + (config.input_size // stage.patch_size).area
        shape = (batch_size, heads, length, config.width // heads)
        q, k, v, gradient = (
            torch.randn(shape, device=session.device, dtype=torch.bfloat16, requires_grad=i < 3) for i in range(4)
        )
        for name, kernel in kernels.items():
            for order, context in (("any order", nullcontext()), ("deterministic", deterministic(session.device))):
                with sdpa_kernel(kernel), context:
                    try:
                        rate = rate_of(lambda: both_passes(q, k, v, gradient), 1, session.device, calls=20)  # noqa: B023
                    except RuntimeError:  # this kernel does not do that
                        continue
                found[f"{length} tokens, {name}, {order}, ms"] = 1000 / rate
    return found


def both_passes(q: Tensor, k: Tensor, v: Tensor, gradient: Tensor) -> None:
    torch.autograd.grad(torch.nn.functional.scaled_dot_product_attention(q, k, v), (q, k, v), gradient)


def rate_of(work: Callable[[], object], images: int, device: torch.device, *, calls: int) -> float:
    """Images/s, after two calls as a warm-up; the host runs ahead of a GPU, as it does in a job."""
    for _ in range(2):
        work()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return calls * images / (time.perf_counter() - started)


def autoencoder_rates(session: Session) -> Values:
    """Images/s of an autoencoder with Stable Diffusion's architecture and random weights, in each data type."""
    from encode import precision_rates, save_kl

    if session.tiny:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
        from data_helpers import save_autoencoder as save_kl
    count, side = (1, 32) if session.tiny else (16, 256)
    types: tuple[ComputeType, ...] = ("float32", "bfloat16", "tf32")
    rates = precision_rates(
        save_kl(session.folder / "kl"), session.device, count, Size.square(side),
        types=types if session.device.type == "cuda" else types[:2],
    )  # fmt: skip
    return {f"{work} {name} images/s": rate for work, of_types in rates.items() for name, rate in of_types.items()}


def inception_rate(session: Session) -> Values:
    """Features of images of 256 pixels by the Inception graph, with random weights."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
    from inception_helpers import write_random_weights

    from mpdit_core.metrics.features import extract, load_extractor

    weights = write_random_weights(session.folder / "weights-inception.pth")
    extractor = load_extractor("inception", device=session.device, weights=weights)
    count = 2 if session.tiny else 64
    images = torch.randint(0, 256, (count, 3, 256, 256), dtype=torch.uint8, device=session.device)
    rate = rate_of(lambda: extract(extractor, images), count, session.device, calls=1 if session.tiny else 50)
    return {"images_per_second": rate}


def profile_slowest(session: Session) -> Values:
    """The slowest operations in the training step with the lowest utilisation."""
    used = {name: found["utilisation"] for name, found in session.results.items() if "made" in found}
    if not used:
        return {"skipped": "no training was measured"}
    name = min(used, key=used.__getitem__)
    made = session.results[name]["made"]
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if session.device.type == "cuda" else []
    trainer, batch = make_step(session.variant(**made))
    for _ in range(2):
        trainer.step(batch)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            trainer.step(batch)
        synchronize(session.device)
    key = "self_device_time_total" if session.device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: getattr(event, key), reverse=True)
    total = sum(getattr(event, key) for event in events)
    return {"of": name, "operations": {event.key[:80]: getattr(event, key) / total for event in events[:15]}}


if __name__ == "__main__":
    main()
