"""Preprocessing of images of any number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from torch import Tensor
from typing_extensions import override

from ..errors import InputError


@MODELS.register_module()
class CoopDataPreProcessor(SegDataPreProcessor):
    """mmseg's ``SegDataPreProcessor`` with a mean and a standard deviation for each channel.

    mmengine's takes one of each, or three, and converts colours only in images of three channels.
    Here colours are the first three; what follows, such as depth, keeps its place.

    Args:
        mean: Mean of each channel, colours as the model gets them. Defaults to None: no
            normalisation.
        std: Standard deviation of each channel. Defaults to None.
        bgr_to_rgb: Whether to reverse the first three channels. Defaults to False.
        rgb_to_bgr: The same; give one of the two. Defaults to False.
        **kwargs: Further arguments of ``SegDataPreProcessor``, such as ``size``.

    Raises:
        ValueError: ``mean`` and ``std`` differ in number, or a standard deviation is not positive.

    Example:
        >>> preprocessor = CoopDataPreProcessor(
        ...     mean=[123.675, 116.28, 103.53, 2800.0], std=[58.395, 57.12, 57.375, 1400.0]
        ... )
        >>> data = dict(inputs=[torch.zeros(4, 8, 8)])
        >>> preprocessor(data)['inputs'][0, 3, 0, 0]
        tensor(-2.)
    """

    def __init__(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr_to_rgb: bool = False,
        rgb_to_bgr: bool = False,
        **kwargs: Any,
    ) -> None:
        if len(mean or ()) != len(std or ()):
            raise ValueError(
                f'mean={mean} and std={std} differ in number; give one of each a channel.'
            )
        if not all(value > 0 for value in std or ()):
            raise ValueError(f'std={std} divides; give numbers greater than 0.')
        super().__init__(**kwargs)
        self.converts = bgr_to_rgb or rgb_to_bgr
        if mean and std:
            self._enable_normalize = True
            for name, values in (('mean', mean), ('std', std)):
                self.register_buffer(name, torch.tensor(values).float().view(-1, 1, 1), False)

    @override
    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        inputs = self.cast_data(data['inputs'])
        mean = getattr(self, 'mean', ())
        for index, image in enumerate(inputs):
            if len(mean) > 1 and len(image) != len(mean):
                samples = data.get('data_samples') or [{}] * len(inputs)
                raise InputError(
                    f'the data preprocessor has mean and std of {len(mean)} channels, but image '
                    f'{samples[index].get("img_path")} has {len(image)}; let the pipeline load '
                    'them all (PhotoMetricDistortion returns three), or give one mean and std a '
                    'channel.'
                )
        if self.converts:
            inputs = [reverse_colours(image) for image in inputs]
        return super().forward({**data, 'inputs': inputs}, training)


def reverse_colours(image: Tensor) -> Tensor:
    """Turn BGR into RGB, or RGB into BGR.

    Args:
        image: Image or images, ``(…, C, H, W)``.

    Returns:
        The same with the first three channels in reverse order.
    """
    colours, rest = image[..., :3, :, :].flip(-3), image[..., 3:, :, :]
    return torch.cat([colours, rest], -3) if rest.shape[-3] else colours
