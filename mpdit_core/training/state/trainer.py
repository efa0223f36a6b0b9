"""The state of a run in memory and the one step that changes it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from mpdit_core.config import RunConfig
from mpdit_core.flow.loss import Terms, TrainingLoss, build_terms
from mpdit_core.model.transformer import MPDiT
from mpdit_core.models.model_folder import require_shapes
from mpdit_core.runtime.device import deterministic
from mpdit_core.runtime.distributed import World
from mpdit_core.runtime.precision import autocast
from mpdit_core.runtime.seeding import hash_seed
from mpdit_core.training.batches import Batch
from mpdit_core.training.schedules import learning_rate_factor
from mpdit_core.training.state.checkpoints import Position, RunState
from mpdit_core.training.state.ema import EMA, averages_of
from mpdit_core.training.state.optimizers import Optimizer
from mpdit_core.training.state.parallel import ParallelModel, gather
from mpdit_core.training.state.recorded_gradients import Numbers, RecordedGradients
from mpdit_core.training.state.sharded import copy_to_cpu


class Trainer:
    """Model, loss, optimizer and averages; `position` tells how far the training is.

    Args:
        terms: of the loss; by default `build_terms` makes them from `config.objective`, whose code is then trusted.
        teacher_features: number of a teacher's features per token in the latents; 0: none.
    """

    def __init__(
        self, config: RunConfig, *, total_steps: int, device: torch.device, world: World,
        terms: Terms | None = None, teacher_features: int = 0,
    ):  # fmt: skip
        self.config, self.total_steps, self.device = config, total_steps, device
        self.position = Position()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_seed(config.train.seed, "weights"))
            network = MPDiT(config.model)
            torch.manual_seed(hash_seed(config.train.seed, "objective"))
            terms = build_terms(config.objective) if terms is None else terms
            loss = TrainingLoss(network, terms, teacher_features=teacher_features)
        train = config.train
        self.model = ParallelModel(loss.train(), train, device=device, world=world)
        self.optimizer = Optimizer(self.model.trained(), train)
        self.ema = EMA(self.model.module, averages_of(train))
        is_recorded = train.compile == "graphs"
        self._compute = RecordedGradients(self._accumulate, self.model.loss) if is_recorded else self._accumulate

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Makes one optimizer step on this process's share of a batch.

        Returns:
            numbers on the device, to be averaged over processes: `loss`, `grad_norm` (the same on all), and the parts
            that the terms of the loss log. Their names and order are the same at every step.
        """
        train = self.config.train
        with deterministic(self.device) if train.deterministic else nullcontext():
            loss, parts = self._compute(batch)
        parameters = list(self.model.loss.parameters())
        norm = gather(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True))
        if train.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, train.grad_clip, norm, foreach=True)
        self.optimizer.step(self._factor)
        self.ema.update(self.position.step)
        self.position = replace(
            self.position,
            step=self.position.step + 1,
            images_seen=self.position.images_seen + train.batch_size,
        )
        return {"loss": loss, "grad_norm": norm.float(), **parts}

    def _accumulate(self, batch: Batch) -> Numbers:
        """Loss and parts of this process's share. Adds its gradients to the parameters, one micro-batch at a time."""
        count = self.config.train.accumulation
        loss, parts = torch.zeros((), device=self.device), {}
        for i, micro_batch in enumerate(batch.chunks(count)):
            with self.model.accumulating(last=i == count - 1):
                with autocast(self.device, self.model.dtype):
                    its_loss, its_parts = self.model.forward(micro_batch)
                (its_loss / count).backward()
                loss += its_loss.detach() / count
            parts = {name: parts.get(name, 0) + part / count for name, part in its_parts.items()}
        return loss, parts

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step; Muon's matrices may have another peak."""
        return self.config.train.learning_rate * self._factor

    @property
    def _factor(self) -> float:
        return learning_rate_factor(self.config.train, self.position.step, total_steps=self.total_steps)

    def state(self, *, whole: bool = True) -> RunState:
        """A copy of everything, on the CPU. All processes must call it.

        Args:
            whole: if False, weights and optimizer of a sharded model are this process's parts.
        """
        averages = {kind.name: self.model.whole(self.ema.state(i)) for i, kind in enumerate(self.ema.kinds)}
        in_parts = self.model.sharded and not whole
        copy = copy_to_cpu if in_parts else self.model.whole
        weights, optimizer = copy(self.model.trained()), copy(self.optimizer.state())
        return RunState(self.position, weights, optimizer, averages, sharded=in_parts)

    @torch.no_grad()
    def restore(self, state: RunState) -> None:
        """Restores a whole `state` bit for bit. All processes must call it.

        Raises:
            UserError: its tensors are not those of this model (`damaged-file`).
        """
        where = f"the checkpoint of step {state.position.step}"
        shapes = {name: tuple(parameter.shape) for name, parameter in self.model.trained().items()}
        require_shapes(shapes, state.weights, where=where)
        if state.optimizer:  # empty before the first step
            require_shapes(self.optimizer.shapes(), state.optimizer, where=where)
        shapes = {name: shapes[name] for name in self.model.weights()}
        for kind in self.ema.kinds:
            require_shapes(shapes, state.averages.get(kind.name, {}), where=where)
        self.position = state.position
        self.model.load(state.weights)
        self.optimizer.load(state.optimizer)
        for i, kind in enumerate(self.ema.kinds):
            self.ema.load(i, state.averages[kind.name])
