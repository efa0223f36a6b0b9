"""A network to be given a state: its shapes and positions, without starting values and the imports that they take."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mpdit_core.model.transformer import MPDiT, without_values
from mpdit_core.presets import load_preset


@pytest.mark.parametrize("name", ["tiny", "digits"])
def test_with_a_state_it_is_the_network(name):
    config = load_preset(name).model
    model, empty = MPDiT(config), without_values(config)
    assert [(n, p.shape, p.dtype) for n, p in model.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in empty.named_parameters()
    ]
    empty.load_state_dict(model.state_dict(), assign=True)
    given = torch.randn(2, config.channels, *config.input_size), torch.rand(2), torch.tensor([0, 1])
    torch.nn.init.normal_(model.head.linear.weight)
    empty.load_state_dict(model.state_dict())
    assert torch.equal(model(*given), empty(*given))


def test_it_imports_no_compiler():
    code = (
        "import sys; from mpdit_core.model.transformer import without_values;"
        "from mpdit_core.presets import load_preset;"
        "without_values(load_preset('tiny').model); print({'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
