"""The line between the weights of a teacher and of its students."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from fasttrain.analysis.findings.minima import _line
from fasttrain.data import Batch
from fasttrain.models.build import new_network
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings


def test_a_teacher_that_was_told_of_its_augmentation_has_students_that_are_not() -> None:
    changes = ["network.augment_dim=9", "network.model_channels=8"]
    shape = load_settings("digits-edm", changes, PretrainSettings).network
    teacher = new_network("edm", shape).state_dict()
    student = new_network("one_step", shape.model_copy(update={"augment_dim": 0})).state_dict()
    assert teacher.keys() - student.keys() == {"model.map_augment.weight"}
    batch = Batch(torch.randn(4, 1, 8, 8), torch.eye(10)[:4], torch.arange(4), 1.0)
    lab: Any = SimpleNamespace(described=SimpleNamespace(network=shape))
    line = _line(lab, teacher, student, batch)
    assert [share for share, _ in line] == [k / 10 for k in range(11)]
    assert all(loss > 0 for _, loss in line)
