"""What the demos share: a trained model, its outputs and their pictures."""

from __future__ import annotations

import argparse
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import DictAction
from mmseg.apis import inference_model
from mmseg.structures import SegDataSample

from mmseg_coop.apis.model import load_model
from mmseg_coop.config import load_config
from mmseg_coop.visualization import CoopLocalVisualizer

Array = np.ndarray[Any, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that the demos have in common.

    Args:
        parser: Parser of the demo, with its input.
    """
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--outputs',
        nargs='+',
        metavar='NAME',
        help='outputs to draw, such as top or ensemble; default: all',
    )
    parser.add_argument('--device', help='cpu, cuda or cuda:N; default: cuda where there is one')
    parser.add_argument(
        '--opacity', type=float, default=0.5, help='of the classes, 0 to 1; default: 0.5'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace files that exist')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values of the config',
    )


class Predictor:
    """Segments images and draws all outputs.

    Args:
        args: The command line, see :func:`add_arguments`.

    Raises:
        FileNotFoundError: The config or the checkpoint do not exist.
        ValueError: An argument does not fit the model.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        if not 0 <= args.opacity <= 1:
            raise ValueError(f'--opacity takes 0 to 1, not {args.opacity}.')
        cfg = load_config(args.config, cfg_options=args.cfg_options)
        device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:  # no such device, or torch is without CUDA
            reason = str(error).splitlines()[0]
            raise ValueError(f'--device {device!r} cannot be used here: {reason}') from error
        self.model = load_model(cfg, args.checkpoint, device=device)
        available = list(getattr(self.model, 'output_names', ['prediction']))
        for name in args.outputs or ():
            if name not in available:
                raise ValueError(f'output {name!r} is unknown; the model has {available}.')
        #: Names of the outputs to draw, in the order of the model.
        self.outputs = [n for n in available if args.outputs is None or n in args.outputs]
        self.visualizer = CoopLocalVisualizer(alpha=args.opacity)
        self.visualizer.dataset_meta = self.model.dataset_meta

    def predict(self, image: Array) -> SegDataSample:
        """Segment an image.

        Args:
            image: BGR, ``(H, W, 3)``, uint8.

        Returns:
            The sample, with the chosen outputs as its ``output_names``.
        """
        sample = inference_model(self.model, image)
        if 'pred_outputs' in sample:
            sample.set_metainfo(dict(output_names=tuple(self.outputs)))
        return sample

    def label_maps(self, sample: SegDataSample) -> dict[str, Array]:
        """Label map of every output, ``(H, W)``, uint8."""
        maps = (
            {name: sample.pred_outputs.get(name) for name in self.outputs}
            if 'pred_outputs' in sample
            else {self.outputs[0]: sample.pred_sem_seg.data}
        )
        return {name: data[0].cpu().numpy().astype(np.uint8) for name, data in maps.items()}

    def draw(self, image: Array, sample: SegDataSample) -> Array:
        """Draw an image and its outputs side by side, with a legend.

        Args:
            image: BGR, ``(H, W, 3)``, uint8.
            sample: From :meth:`predict`.

        Returns:
            The picture, BGR.
        """
        self.visualizer.add_datasample('prediction', mmcv.bgr2rgb(image), sample, draw_gt=False)
        return mmcv.rgb2bgr(self.visualizer.get_image())
