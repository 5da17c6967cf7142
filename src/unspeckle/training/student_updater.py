"""The loss of a student: how far it is from where its teacher's trajectories lead."""

from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.denoiser import Network, concatenate
from unspeckle.generation.few_step import with_step_count
from unspeckle.model import Model
from unspeckle.timesteps import timesteps
from unspeckle.training.master_weights import MasterWeights
from unspeckle.training.plan import DistillationPlan
from unspeckle.training.teacher_trajectories import (
    DISTILLATION_TIMESTEP_SPACING,
    TeacherTrajectories,
    list_segments,
    segment_target,
)
from unspeckle.training.text_to_image_updater import TrainableModules
from unspeckle.training.updater import Updater


def init_student(teacher: Model) -> nn.Module:
    """The untrained student: its teacher's network with one more input, the number of steps, without effect yet."""
    network: Any = teacher.network
    pooled_vector = teacher.text_encoder(teacher.tokenizer.encode([""]).to(teacher.device)).vector
    config = replace(network.config, vector_width=1 + (0 if pooled_vector is None else pooled_vector.shape[1]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student: nn.Module = type(network)(config)
    teacher_state, student_state = network.state_dict(), student.state_dict()
    for name, tensor in student_state.items():
        if name in teacher_state:
            padding = tensor.shape[-1] - teacher_state[name].shape[-1] if tensor.ndim else 0
            student_state[name] = F.pad(teacher_state[name], (0, padding)) if padding else teacher_state[name]
        elif name.startswith("vector_embed_2."):
            # The teacher's network takes no vector: this layer would add one to the embedding of the time.
            student_state[name] = torch.zeros_like(tensor)
    student.load_state_dict(student_state)
    return student


class StudentUpdater(Updater):
    """Updates a student's network; text encoder and autoencoder are its teacher's."""

    plan: DistillationPlan

    def __init__(self, plan: DistillationPlan, teacher: Model) -> None:
        # The same module with the same names as when a text encoder is trained with the network.
        modules = TrainableModules(init_student(teacher), nn.Identity())
        super().__init__(plan, MasterWeights.for_plan(modules, plan.compute))
        network = cast(TrainableModules, self.weights.compute_module).network
        self.denoiser = plan.model.build_denoiser(cast(Network, network))

    def loss(self, batch: TeacherTrajectories, step: int) -> Tensor:
        """The mean () over all segments of all trajectories of the squared error, weighted by the plan's objective."""
        schedule, count = self.denoiser.schedule, batch.points.shape[1]
        grid = timesteps(DISTILLATION_TIMESTEP_SPACING, schedule, self.plan.distillation.teacher_steps)
        segments = list_segments(self.plan.distillation)
        x_t = torch.cat([batch.points[segment.start] for segment in segments])
        targets = torch.cat([segment_target(batch.points, schedule, grid, segment) for segment in segments])
        t = grid[[segment.start for segment in segments]].float().to(self.device).repeat_interleave(count)
        step_counts = torch.tensor([segment.step_count for segment in segments], device=self.device)
        conditioning = concatenate([batch.conditioning] * len(segments))
        denoised = self.denoiser(x_t, t, with_step_count(conditioning, step_counts.repeat_interleave(count)))
        weight = self.plan.objective.loss_weight(t, schedule, self.denoiser.prediction)
        loss: Tensor = (weight * (denoised - targets).square().mean((1, 2, 3))).mean()
        return loss
