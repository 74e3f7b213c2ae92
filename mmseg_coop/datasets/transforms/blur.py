"""Gaussian blur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmseg.registry import TRANSFORMS
from typing_extensions import override


@TRANSFORMS.register_module()
class RandomGaussianBlur(BaseTransform):
    """Blur the image, sometimes, by a random amount; the label stays as it is.

    Part of the augmentation that public DeepLabV3+ implementations use on PASCAL VOC.

    Required and modified key: ``img``.

    Args:
        prob: Probability of blurring. Defaults to 0.5.
        sigma_range: Lowest and highest standard deviation of the kernel, in pixels; drawn evenly.
            Defaults to (0.0, 1.0).

    Raises:
        ValueError: ``prob`` is no probability, or the range is empty or negative.
    """

    def __init__(self, *, prob: float = 0.5, sigma_range: Sequence[float] = (0.0, 1.0)) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob={prob!r} has to lie between 0 and 1.')
        if len(sigma_range) != 2 or not 0 <= sigma_range[0] <= sigma_range[1]:
            raise ValueError(
                f'sigma_range={sigma_range!r} has to be (lowest, highest) with 0 <= lowest <= '
                'highest.'
            )
        self.prob = prob
        self.sigma_range = tuple(sigma_range)

    @cache_randomness
    def _draw(self) -> float | None:
        """Standard deviation of this image's kernel, or None to leave it."""
        if np.random.rand() >= self.prob:  # noqa: NPY002  # seeded by mmengine for each worker
            return None
        low, high = self.sigma_range
        return float(np.random.uniform(low, high))  # noqa: NPY002

    @override
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        sigma = self._draw()
        if sigma:  # cv2 takes 0 as a request to choose
            results['img'] = cv2.GaussianBlur(results['img'], (0, 0), sigma)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob}, sigma_range={self.sigma_range})'
