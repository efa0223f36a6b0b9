"""The velocity network as a graph that runs without this package: ONNX, or a `torch.export` program (.pt2).

Inputs `x_t [B, C, h, w]` float32, `t [B]` float32, `labels [B]` int64; output `velocity [B, C, h, w]`; any B.
Both are compared with the network itself before they are kept.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from mpdit_core.config import ModelConfig
from mpdit_core.errors import UserError
from mpdit_core.model.time_embeddings.fno import SpectralConvolution
from mpdit_core.model.time_embeddings.fno import TimeEmbedding as FnoTimeEmbedding
from mpdit_core.model.transformer import MPDiT

INPUTS = ("x_t", "t", "labels")
EXTERNAL_ABOVE = 1.9e9  # bytes of weights above which ONNX keeps them in a file beside the graph (its limit is 2 GB)
TOLERANCE = 1e-4  # largest difference, relative to the largest velocity
TRACED_BATCH = 3


class MatrixSpectralConvolution(nn.Module):
    """The same map as `SpectralConvolution`, with products of real matrices in place of FFTs and complex numbers.

    The first modes of a real signal s are `s @ cos − i·s @ sin`. In the inverse, every mode except the constant one
    counts twice, for the negative frequency too. Input and output are [B, channels, grid].
    """

    cos: Tensor  # [grid, mode]
    sin: Tensor
    weight: Tensor  # [mode], factor of a mode in the inverse

    def __init__(self, source: SpectralConvolution, *, grid: int):
        super().__init__()
        self.real, self.imaginary = source.real, source.imaginary  # [in, out, mode]
        modes = torch.arange(source.MODES, dtype=torch.float64)
        angles = torch.arange(grid)[:, None] * modes * (2 * math.pi / grid)
        tables = {"cos": angles.cos(), "sin": angles.sin(), "weight": torch.where(modes == 0, 1.0, 2.0) / grid}
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def forward(self, signal: Tensor) -> Tensor:
        def product(modes: Tensor, matrix: nn.Parameter) -> Tensor:
            return torch.einsum("bim,iom->bom", modes, matrix)

        real, imaginary = signal @ self.cos, -(signal @ self.sin)  # [B, in, mode]
        low_real = product(real, self.real) - product(imaginary, self.imaginary)  # [B, out, mode]
        low_imaginary = product(real, self.imaginary) + product(imaginary, self.real)
        return (low_real * self.weight) @ self.cos.T - (low_imaginary * self.weight) @ self.sin.T


def exportable(model: MPDiT) -> MPDiT:
    """A copy of `model` that computes the same without FFTs, which graph formats do not have."""
    with torch.no_grad():
        copied = copy.deepcopy(model).cpu().eval()
    embedding = copied.time_embedding
    if isinstance(embedding, FnoTimeEmbedding):
        for i, spectral in enumerate(embedding.spectral):
            embedding.spectral[i] = MatrixSpectralConvolution(spectral, grid=embedding.GRID)  # pyright: ignore[reportArgumentType]
    return copied


def example(config: ModelConfig, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs x_t, t, labels of the right shapes, the null label among them; the same every time."""
    random = torch.Generator().manual_seed(batch)
    x_t = torch.randn(batch, config.channels, *config.input_size, generator=random)
    labels = torch.arange(batch) % len(config.labels)
    labels[-1] = config.null_label
    return x_t, torch.linspace(0, 1, batch), labels


def write_torch_export(model: MPDiT, path: Path) -> float:
    """Writes `path` (.pt2); returns the difference from the network. Raises `UserError` as `compare`."""
    program = _program(model)
    difference = compare(model, program.module())
    torch.export.save(program, path)
    return difference


def write_onnx(model: MPDiT, path: Path) -> float:
    """Writes `path` (.onnx; weights of more than 2 GB beside it); returns the difference in onnxruntime.

    Raises:
        UserError: the packages are not installed (`missing-package`), or as `compare`.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - the exporter of torch needs it
    except ImportError as error:
        raise UserError(
            f"the format onnx needs a package that is not installed: {error.name}",
            code="missing-package",
            remedy="pip install 'mpdit[onnx]'",
        ) from error
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with _silent():
        program = torch.onnx.export(
            _program(model), input_names=list(INPUTS), output_names=["velocity"], dynamo=True, verbose=False
        )
        assert program is not None
        program.save(str(path), external_data=size > EXTERNAL_ABOVE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return compare(model, run)


def compare(model: MPDiT, other: Callable[..., Tensor]) -> float:
    """Largest difference of `other` from `model`, relative to the largest velocity, over three batch sizes.

    Raises:
        UserError: it is above TOLERANCE (`graph-differs`).
    """
    worst = 0.0
    with torch.no_grad():
        for batch in (TRACED_BATCH, 5, 1):
            inputs = example(model.config, batch)
            expected = model.cpu()(*inputs)
            difference = (other(*inputs) - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
            worst = max(worst, float(difference))
    if not worst <= TOLERANCE:
        raise UserError(
            f"the graph differs from the network by {worst:.1e} of the largest velocity",
            code="graph-differs",
            expected=f"at most {TOLERANCE:g}",
        )
    return worst


def _program(model: MPDiT) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=2**16)
    shapes = tuple({0: batch} for _ in INPUTS)
    with _silent(), torch.no_grad():
        program = torch.export.export(exportable(model), example(model.config, TRACED_BATCH), dynamic_shapes=shapes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names source files by their paths on this machine
    return program


@contextmanager
def _silent() -> Iterator[None]:
    """Without the messages of torch's exporters, which users need not see: the numbers are compared afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
