"""Our model against the official implementation: forward, guidance, time embedding, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from golden_files import FILES, assert_close, load_model, official_weights

from mpdit_core.api import TrainingBatch
from mpdit_core.flow.loss import TrainingLoss
from mpdit_core.flow.objectives.flow_matching import FlowMatching
from mpdit_core.interop.official.names import convert_state_dict
from mpdit_core.model.positions import position_table
from mpdit_core.size import Size

golden = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_all_four_files_are_here():
    assert [f.stem for f in FILES] == ["dit_dense", "three_stage_fno", "two_stage_fno", "two_stage_mlp_no_skip"]


@golden
def test_velocity(path):
    model, g = load_model(path)
    with torch.no_grad():
        assert_close(model(g["x"], g["t"], g["y"]), g["velocity"])


@golden
def test_guided_velocity(path):
    model, g = load_model(path)
    labels, null = g["cfg.y"], torch.full_like(g["cfg.y"], model.config.null_label)
    t = torch.tensor([0.6])
    with torch.no_grad():
        cond, unconditional = model(g["x"], t, labels), model(g["x"], t, null)
    assert_close(unconditional + 1.75 * (cond - unconditional), g["cfg.velocity"])


@golden
def test_time_embedding(path):
    model, g = load_model(path)
    with torch.no_grad():
        assert_close(model.time_embedding(g["t"]), g["time_embedding"])


@golden
def test_loss_and_gradients(path):
    model, g = load_model(path)
    batch = TrainingBatch(g["loss.x0"], g["loss.noise"], t=g["t"], labels=g["y"])
    loss, _ = TrainingLoss(model, {"flow-matching": FlowMatching()})(batch)
    assert_close(loss, g["loss.value"].squeeze())
    loss.backward()
    official_gradients = {n.removeprefix("grad."): v for n, v in g.items() if n.startswith("grad.")}
    assert len(official_gradients) >= 3
    # Gradients go through the same renaming as the weights do.
    weights = official_weights(g)
    _, ours = convert_state_dict(weights | official_gradients, num_heads=model.config.num_heads)
    _, unchanged = convert_state_dict(weights, num_heads=model.config.num_heads)
    compared = 0
    for name, parameter in model.named_parameters():
        if not torch.equal(ours[name], unchanged[name]):
            assert parameter.grad is not None
            assert_close(parameter.grad, ours[name])
            compared += 1
    assert compared == len(official_gradients)


@golden
def test_position_tables(path):
    model, g = load_model(path)
    found = [stage.get_buffer("positions") for stage in model.stages]
    tables = {len(positions): positions for positions in found}
    golden_tables = [v[0] for n, v in g.items() if n.startswith("weights.pos_embed")]
    assert len(golden_tables) == len(tables)
    for table in golden_tables:
        assert_close(tables[len(table)], table)
    assert position_table(48, Size(4, 3)).shape == (12, 48)


@golden
def test_one_time_for_a_batch_equals_many(path):
    model, g = load_model(path)
    t = torch.full((3,), 0.3)
    with torch.no_grad():
        torch.testing.assert_close(model(g["x"], t[:1], g["y"]), model(g["x"], t, g["y"]), rtol=1e-5, atol=1e-6)
