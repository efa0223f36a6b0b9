"""Speed of sampling against eager float32, the machine's rate, and the network alone: `python benchmarks/sample.py`.

    python benchmarks/sample.py --preset b-256 -n 8 --num-steps 5
    python benchmarks/sample.py --preset xl-256 --device cuda -n 128 --num-steps 50 --batch-size 64
    python benchmarks/sample.py --memory -n 50000 --num-steps 1 --guidance-scale 1

The whole job is timed, with its PNGs; the weights are random, which takes the same time. Jobs with the given options
(`--precision`, `--compile`) and plain ones, eager in float32, take turns. Shares are FLOPs of the network's matrix
products / time / the rate of one large matrix product in each type. Latents of four channels are written as they are
unless --autoencoder decodes them; decoding counts as time outside the network. On a CPU, one thread is used and network
calls are timed. On a GPU, waiting for each call would change the result, so as many calls of the network alone are
timed afterwards. With --memory, a separate process writes each format, for 2,000 images and for -n, and the peak memory
of these processes is compared.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import in_new_process, write_result

from mpdit_core.config import RunConfig, Stage
from mpdit_core.data.manifest import AutoencoderSpec, LatentSpec, Normalisation
from mpdit_core.model.compute import forward_macs
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import open_model, save_model
from mpdit_core.presets import load_preset
from mpdit_core.runtime.device import matmul_rate, peak_memory, select_device, synchronize
from mpdit_core.runtime.precision import DTYPES, autocast, choose_dtype
from mpdit_core.sampling import SampleOptions, sample
from mpdit_core.sampling.options import Format, SampleResult
from mpdit_core.sampling.writers import WRITERS
from mpdit_core.size import Size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--model", help="a real model instead of random weights")
    parser.add_argument("-n", "--num-samples", type=int, default=128)
    parser.add_argument("--num-steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--autoencoder", help="Hub id or folder of the autoencoder that decodes the latents")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--compile", default="off", choices=["off", "on", "graphs"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure only peak memory, for few and for many images")
    arguments = parser.parse_args()
    device = select_device(arguments.device)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            compare_memory(arguments, Path(folder))
            return
        config, autoencoder = load_preset(arguments.preset), arguments.autoencoder
        where = arguments.model or random_model(Path(folder) / "model", config, autoencoder=autoencoder)
        plainly = argparse.Namespace(**vars(arguments) | {"precision": "float32", "compile": "off"})
        rounds: dict[str, list[dict[str, Any]]] = {"plain": [], "asked": []}
        for i in range(arguments.rounds + 1):
            for kind, asked in (("plain", plainly), ("asked", arguments)):
                rounds[kind].append(measure(where, asked, device, Path(folder) / f"{kind}-{i}"))
        network = open_model(where).config.model
    plain, best = (max(taken[1:], key=lambda r: r["images_per_second"]) for taken in rounds.values())  # one warms up
    rates = {name: matmul_rate(device, DTYPES[name]) for name in ("float32", "bfloat16")}
    flops = 2 * forward_macs(network) * best["passes"] * best["images_per_second"]
    shares = {f"share_of_{name}": flops / rate for name, rate in rates.items()}
    ratio = best["images_per_second"] / plain["images_per_second"]
    print(
        f"{best['images_per_second']:.4g} images/s in {best['precision']}, {ratio:.2f} × plain; "
        f"{best['share_outside_network']:.1%} of the time outside the network"
    )
    for name, rate in rates.items():
        print(f"{shares[f'share_of_{name}']:.1%} of the {rate / 1e9:.4g} GFLOP/s of large matrix products in {name}")
    name = "model" if arguments.model else arguments.preset
    about = {k: v for k, v in vars(arguments).items() if k != "model"} | {"device": str(device)}
    found = {"times_plain": ratio, **shares, "matmul_flops": rates, "best": best, "plain": plain, "rounds": rounds}
    print(write_result(f"sample-{name}", {**about, **found}))


def random_model(folder: Path, config: RunConfig, *, autoencoder: str | None = None) -> str:
    """Writes a model of `config` with random weights, whose latents are pixels, or those of an autoencoder."""
    channels = config.model.channels
    name, factor = (autoencoder, 8) if autoencoder else ("pixels-gray" if channels == 1 else "pixels", 1)
    spec = LatentSpec(
        resolution=config.model.input_size * factor,
        autoencoder=AutoencoderSpec(id=name, factor=factor, channels=channels),
        normalisation=Normalisation(name="measured", mean=(0.0,) * channels, std=(0.5,) * channels),
        class_names=tuple(str(i) for i in range(config.model.num_classes)),
        source="random weights",
        count=0,
    )
    model = MPDiT(config.model)
    save_model(folder, dict(model.named_parameters()), config=config, latents=spec, step=0)
    return str(folder)


FEW = 2000  # number of images in the smaller job of `compare_memory`


def compare_memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Peak resident memory of whole jobs in each format, for `FEW` and for -n images; writes the result.

    A small network makes colour images of 64 pixels, 12 KiB each: 50,000 of them in memory would be visible.
    """
    config = load_preset("tiny")
    shape = {"channels": 3, "input_size": Size.square(64), "stages": (Stage(16, 1), Stage(8, 1))}
    config = config.model_copy(update={"model": config.model.model_copy(update=shape)})
    where = arguments.model or random_model(folder / "model", config, autoencoder=arguments.autoencoder)
    rows = []
    for format_ in WRITERS:
        for count in (FEW, arguments.num_samples):
            out = folder / f"{format_}-{count}"
            row = in_new_process(memory_of, where, arguments, count, format_, out)
            rows.append({"format": format_, "images": count, **row})
            print(rows[-1], flush=True)
            shutil.rmtree(out)
    about = {k: getattr(arguments, k) for k in ("num_steps", "batch_size", "guidance_scale")}
    print(write_result("sample-memory", {**about, "image_bytes": 3 * 64 * 64, "rows": rows}))


def memory_of(where: str, arguments: argparse.Namespace, count: int, format_: Format, out: Path) -> dict[str, Any]:
    """One job in this process, which must do nothing else, because its peak memory is measured."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    sample(sample_options(where, arguments, count=count, format_=format_, out=out))
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {
        "peak_mib": round(peak_memory(torch.device("cpu")) / 2**20, 1),
        "written_mib": round(written / 2**20, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def sample_options(
    where: str, arguments: argparse.Namespace, *, count: int, format_: Format, out: Path
) -> SampleOptions:  # fmt: skip
    shared = ("num_steps", "batch_size", "guidance_scale", "device", "precision", "compile")
    asked = {name: getattr(arguments, name) for name in shared}
    return SampleOptions(model=where, num_samples=count, format=format_, out=out, **asked)


def measure(where: str, arguments: argparse.Namespace, device: torch.device, out: Path) -> dict[str, Any]:
    """One whole job. Loading and checking the model come before the first block and are not counted."""
    folder = open_model(where)
    decodes = folder.latents is not None and (folder.latents.autoencoder.channels in (1, 3) or arguments.autoencoder)
    format_ = "png" if decodes else "latents"
    options = sample_options(where, arguments, count=arguments.num_samples, format_=format_, out=out)
    inside = 0.0
    original = MPDiT.forward

    def timed(self: MPDiT, *inputs: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        started = time.perf_counter()
        result = original(self, *inputs)
        inside += time.perf_counter() - started
        return result

    if device.type == "cpu":
        MPDiT.forward = timed  # pyright: ignore[reportAttributeAccessIssue]
    try:
        result = sample(options)
    finally:
        MPDiT.forward = original
    assert isinstance(result, SampleResult)
    assert result.images_per_second is not None
    seconds = arguments.num_samples / result.images_per_second
    if device.type != "cpu":
        inside = network_alone(where, options, device, evaluations=int(result.nfe))
    return {
        "images_per_second": result.images_per_second,
        "precision": result.precision,
        "seconds": seconds,
        "seconds_in_network": inside,
        "share_outside_network": max(0.0, 1 - inside / seconds),
        "nfe": result.nfe,
        "passes": result.passes,
    }


@torch.inference_mode()
def network_alone(where: str, options: SampleOptions, device: torch.device, *, evaluations: int) -> float:
    """Seconds for the same number of evaluations of the same number of images, without anything else."""
    network = open_model(where).load(device)
    config, twice = network.config, 1 if options.guidance_scale == 1 else 2
    dtype, images = choose_dtype(options.precision, device, config), options.num_samples or 0
    total = 0.0
    for start in range(0, images, options.batch_size):
        count = twice * min(options.batch_size, images - start)
        x_t = torch.randn(count, config.channels, *config.input_size, device=device)
        t, labels = torch.full((1,), 0.5, device=device), torch.zeros(count, dtype=torch.int64, device=device)
        with autocast(device, dtype):
            network(x_t, t, labels)
            synchronize(device)
            started = time.perf_counter()
            for _ in range(evaluations):
                network(x_t, t, labels)
            synchronize(device)
            total += time.perf_counter() - started
    return total


if __name__ == "__main__":
    main()
