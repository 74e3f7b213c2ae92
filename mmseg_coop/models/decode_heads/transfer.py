"""A network that learns from the outputs of others beside the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmseg.models.utils import resize
from torch import Tensor
from torch.nn import functional

from .._checks import check_choice, check_positive_number
from ..cooperation.networks import ENSEMBLE, ensemble_of


class Transfer:
    """Lets a network, the student, predict what another network of the model, the teacher, does.

    The loss is ``loss_weight * T**2 * KL(teacher || student)``, where the probabilities are the
    softmax of the logits divided by the temperature ``T``, so that its gradient does not shrink
    with ``T`` (Hinton et al., `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, section 2). With ``out_channels=1`` the probabilities are
    those of the two classes. It is the mean over the pixels whose label is not ignored. The teacher
    learns nothing from it.

    It is taken at the size of the student's logits, to which the teacher's are resized: at the
    labels' size both would be enlarged maps, which hold no more and cost ``stride**2`` times as
    much. The label in the middle of a pixel of the logits says whether this is ignored.

    Args:
        teacher: A network, or ``'ensemble'``: all networks but the student, with the mean of their
            logits, which is the geometric mean of their probabilities. Unlike the sum, which
            decides alike, it is no more peaked than a network's own prediction.
        student: A network.
        loss_weight: Weight of the loss. Defaults to 1.
        temperature: ``T``. Defaults to 1.

    Raises:
        ValueError: A network would teach itself, or a number is not positive.

    Example:
        >>> import torch
        >>> transfer = Transfer(teacher='ensemble', student='light')
        >>> logits = {name: torch.randn(1, 3, 4, 4) for name in ('top', 'bottom', 'light')}
        >>> labels = torch.zeros(1, 1, 16, 16, dtype=torch.long)
        >>> transfer.name, transfer(logits, labels, ignore_index=255, align_corners=False).ndim
        ('light.loss_transfer_ensemble', 0)
    """

    def __init__(
        self, *, teacher: str, student: str, loss_weight: float = 1.0, temperature: float = 1.0
    ) -> None:
        if teacher == student:
            raise ValueError(
                f'the network {student!r} is its own teacher; give another network, or {ENSEMBLE!r}'
                ' for all others.'
            )
        check_positive_number('loss_weight', loss_weight)
        check_positive_number('temperature', temperature)
        self.teacher = teacher
        self.student = student
        self.loss_weight = loss_weight
        self.temperature = temperature

    @property
    def name(self) -> str:
        """Name of the loss, another one for each teacher of a student."""
        return f'{self.student}.loss_transfer_{self.teacher}'

    def __call__(
        self,
        seg_logits: Mapping[str, Tensor],
        labels: Tensor,
        *,
        ignore_index: int,
        align_corners: bool,
    ) -> Tensor:
        """Compute the loss.

        Args:
            seg_logits: Every network's logits, each ``(N, C, H, W)`` at its own stride.
            labels: ``(N, 1, H, W)``, at any size.
            ignore_index: Label that is ignored.
            align_corners: Passed to the interpolation of the teacher's logits.

        Returns:
            The loss, a number in float32.
        """
        # float32, as a difference of logarithms in half precision is little but rounding
        student = seg_logits[self.student].float()
        size = student.shape[2:]
        one = self.teacher != ENSEMBLE
        names = [self.teacher] if one else [name for name in seg_logits if name != self.student]
        fit = partial(resize, size=size, mode='bilinear', align_corners=align_corners)
        taught = [fit(seg_logits[name].detach().float()) for name in names]
        teacher = ensemble_of(taught, mean=True)
        divergence = functional.kl_div(
            self._log_probabilities(student),
            self._log_probabilities(teacher),
            reduction='none',
            log_target=True,
        ).sum(dim=1)
        labels = functional.interpolate(labels.float(), size, mode='nearest-exact').squeeze(1)
        kept = labels != ignore_index
        mean = torch.where(kept, divergence, 0).sum() / kept.sum().clamp(min=1)
        return self.loss_weight * self.temperature**2 * mean

    def _log_probabilities(self, seg_logits: Tensor) -> Tensor:
        if seg_logits.shape[1] == 1:  # softmax of (0, x) is sigmoid of (-x, x)
            seg_logits = torch.cat([torch.zeros_like(seg_logits), seg_logits], dim=1)
        return (seg_logits / self.temperature).log_softmax(dim=1)


def build_transfers(
    transfer: Sequence[Mapping[str, Any]], networks: Sequence[str]
) -> list[Transfer]:
    """Build what the networks of a head learn from each other.

    Args:
        transfer: Arguments of :class:`Transfer`, those of each in a dictionary.
        networks: Names of the networks.

    Returns:
        The transfers.

    Raises:
        ValueError: A teacher or a student is unknown, a student has a teacher twice, or
            :class:`Transfer` refuses its arguments.
    """
    teachers = (*networks, ENSEMBLE) if len(networks) > 1 else networks
    built: dict[str, Transfer] = {}
    for index, arguments in enumerate(transfer):
        try:
            one = Transfer(**arguments)
            check_choice('student', one.student, networks)
            check_choice('teacher', one.teacher, teachers)
            if one.name in built:
                raise ValueError(
                    f'{one.teacher!r} teaches {one.student!r} already; give the pair once, with '
                    'the loss_weight that it is to have.'
                )
        except ValueError as error:
            raise ValueError(f'transfer.{index}: {error}') from error
        built[one.name] = one
    return list(built.values())
