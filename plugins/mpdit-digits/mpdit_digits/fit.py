"""Trains `classifier.safetensors`: `python -m mpdit_digits.fit OUT.safetensors` (about a minute on two cores).

Every sixth scan is held out; the accuracy on these scans is stored with the weights.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from mpdit_digits.dataset import Digits
from mpdit_digits.features import DigitNet, gray

EPOCHS = 60
BATCH = 64


def real_digits() -> tuple[Tensor, Tensor]:
    """All pictures as the extractor receives them, [1797, 3, 16, 16] uint8, and their labels [1797]."""
    data = Digits()
    items = data.items()
    pictures = np.stack([np.asarray(data.image(index)) for index in range(len(items))])
    return torch.from_numpy(pictures)[:, None].expand(-1, 3, -1, -1), torch.tensor([item.label for item in items])


def augment(x: Tensor) -> Tensor:
    """Each picture rotated by up to 10°, scaled by up to 10 %, shifted by up to a pixel, with a little noise."""
    angle = (torch.rand(len(x)) * 2 - 1) * 0.17
    scale = 1 + (torch.rand(len(x)) * 2 - 1) * 0.1
    shift = (torch.rand(len(x), 2, 1) * 2 - 1) / 8
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([rotation * scale[:, None, None], shift], dim=2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False) + 0.03 * torch.randn_like(x)


def main(out: str) -> None:
    torch.manual_seed(0)
    images, labels = real_digits()
    x = gray(images)
    held_out = torch.arange(len(x)) % 6 == 0
    fit_x, fit_labels = x[~held_out], labels[~held_out]

    network = DigitNet()
    steps = EPOCHS * (len(fit_x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(fit_x), (BATCH,))
        _, logits = network(augment(fit_x[rows]))
        loss = F.cross_entropy(logits, fit_labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    network.eval()
    with torch.no_grad():
        right = (network(x)[1].argmax(1) == labels).float()
    accuracy = (
        f"{right[held_out].mean():.4f} of {int(held_out.sum())} held out, {right[~held_out].mean():.4f} of the rest"
    )
    save_file(network.state_dict(), out, metadata={"accuracy": accuracy})
    sys.stdout.write(accuracy + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
