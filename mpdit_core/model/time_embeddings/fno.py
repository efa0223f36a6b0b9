"""A Fourier neural operator on the function `grid -> grid + t`, averaged over the grid (MPDiT, section 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralConvolution(nn.Module):
    """Multiplies the first `MODES` Fourier modes along a grid by a complex matrix. [B, channels, grid] both ways."""

    MODES = 16

    def __init__(self, channels: int):
        super().__init__()
        shape = (channels, channels, self.MODES)  # in, out, mode
        self.real = nn.Parameter(torch.randn(shape))
        self.imaginary = nn.Parameter(torch.randn(shape))

    def forward(self, signal: Tensor) -> Tensor:
        grid = signal.shape[-1]
        spectrum = torch.fft.rfft(signal)[..., : self.MODES]
        weight = torch.complex(self.real, self.imaginary)
        # One [in, out] product per mode, as a batched matrix product: [mode, B, in] @ [mode, in, out]
        low = torch.bmm(spectrum.permute(2, 0, 1), weight.permute(2, 0, 1)).permute(1, 2, 0)
        return torch.fft.irfft(low, n=grid)  # rfft's missing modes are zeros


class TimeEmbedding(nn.Module):
    """t [B] -> [B, D]. Always in float32, also under autocast: in bfloat16 its error is larger than the difference
    between adjacent sampling steps.
    """

    CHANNELS = 32
    GRID = 32
    LAYERS = 3

    def __init__(self, width: int):
        super().__init__()
        self.lift = nn.Linear(1, self.CHANNELS)
        self.spectral = nn.ModuleList(SpectralConvolution(self.CHANNELS) for _ in range(self.LAYERS))
        self.pointwise = nn.ModuleList(nn.Linear(self.CHANNELS, self.CHANNELS) for _ in range(self.LAYERS))
        self.project = nn.Linear(self.CHANNELS, width)

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            grid = torch.linspace(-1, 1, self.GRID, device=t.device) + t.float()[:, None]  # [B, grid]
            signal = self.lift(grid[..., None])  # [B, grid, channels]
            last = self.LAYERS - 1
            for i, (spectral, pointwise) in enumerate(zip(self.spectral, self.pointwise, strict=True)):
                signal = spectral(signal.transpose(1, 2)).transpose(1, 2) + pointwise(signal)
                if i != last:
                    signal = F.gelu(signal)
            return self.project(signal.mean(dim=1))

    def initialize(self, *, spectral_scale: float) -> None:
        for spectral in self.spectral:
            nn.init.normal_(spectral.real, std=spectral_scale)  # pyright: ignore[reportArgumentType]
            nn.init.normal_(spectral.imaginary, std=spectral_scale)  # pyright: ignore[reportArgumentType]
