"""How much images are like others, pixel by pixel: PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PSNR = 100.0  # dB, for images that are equal


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, [B], of uint8 images [B, K, H, W]; at most `MAX_PSNR`."""
    error = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(255**2 / error)).clamp(max=MAX_PSNR)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity, [B], of uint8 images [B, K, H, W] (Wang et al. 2004, eq. 13).

    The mean over colours and all places where the window fits, with the paper's window, a Gaussian of 11 pixels and
    standard deviation 1.5, and its constants 0.01 and 0.03. If a side is below 11 pixels, the window has that size.
    """
    side = min(11, *images.shape[-2:])
    offsets = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window /= window.sum()

    def sliding(length: int) -> Tensor:
        """[places, length]: a row of weights for each place where the window fits."""
        places = length - side + 1
        return torch.stack([F.pad(window, (place, places - place - 1)) for place in range(places)])

    rows, columns = map(sliding, images.shape[-2:])

    def local_mean(values: Tensor) -> Tensor:
        return rows @ values @ columns.T

    x, y = images.double(), others.double()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (var_x + var_y + c2)).mean(dim=(1, 2, 3))
