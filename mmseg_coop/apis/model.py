"""Builds a trained model for inference, the way the demos and the deployment tools do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from mmseg.models import BaseSegmentor
from mmseg.registry import DATASETS, MODELS
from torch import Tensor, nn

from ..config import config_errors, forget_pretrained
from ..datasets.faults.walk import iter_datasets
from ..engine.weights import compare_weights
from ..errors import CheckpointError, ConfigError
from ..registry import class_of
from .label_maps import without_labels
from .optimize import optimize_for_inference


def load_model(
    cfg: Config,
    checkpoint: str,
    *,
    device: str | torch.device = 'cpu',
    optimize: bool = False,
    dtype: str | None = None,
) -> BaseSegmentor:
    """Build the model of a config with the weights of a checkpoint, ready for ``mmseg.apis``.

    Unlike ``mmseg.apis.init_model`` it takes checkpoints without meta information as well, plain
    state dicts among them, and refuses weights that do not fit.

    Args:
        cfg: Config. The model that is returned holds it as ``cfg``, with a ``test_pipeline``
            without labels, which gives whole images.
        checkpoint: File, or an address that mmengine reads.
        device: Where the model goes. Defaults to ``'cpu'``.
        optimize: Whether to fold batch norms and lay out memory as NHWC, see
            :func:`optimize_for_inference`. Defaults to False.
        dtype: What to compute in, see there. Defaults to None: float32.

    Returns:
        The model in evaluation mode, with ``dataset_meta`` (``classes`` and ``palette``) from the
        checkpoint or else from the test dataset of the config. Without a palette the colours are
        random, but always the same.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        CheckpointError: The weights do not fit the model.
        ConfigError: Nothing names the classes.
        InputError: ``dtype`` does not fit the device.
    """
    require_file(checkpoint)
    model = revert_sync_batchnorm(build_model(cfg))
    content = load_weights(model, checkpoint)
    model.dataset_meta = _dataset_meta(content.get('meta', {}), cfg)
    cfg.test_pipeline = without_labels(cfg.test_dataloader.dataset.pipeline)
    model.cfg = cfg
    model = model.to(device).eval()
    if optimize or dtype:
        optimize_for_inference(model, fuse=optimize, channels_last=optimize, dtype=dtype)
    return model


def build_model(cfg: Config, *, pretrained: bool = False) -> BaseSegmentor:
    """Build the model of a config.

    Args:
        cfg: Config.
        pretrained: Whether its model keeps what loads pretrained weights. Defaults to False, for
            whoever brings all weights, or needs none.

    Raises:
        ConfigError: A part of the model cannot be built.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    if not pretrained:
        forget_pretrained(cfg.model)
    with config_errors(cfg):
        return MODELS.build(cfg.model)


def choose_device(text: str | None) -> torch.device:
    """Device from the command line, which has to be there; None takes CUDA where there is one."""
    try:
        device = torch.device(text or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # no such device, or torch is without CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'--device {text!r} cannot be used here: {reason} It takes cpu, cuda or cuda:N.'
        ) from error
    return device


def choose_outputs(model: BaseSegmentor, wanted: Sequence[str] | None = None) -> list[str]:
    """Names of the wanted outputs of a model, in its order; by default of all.

    A model of mmseg has a single one, ``'prediction'``.
    """
    available = list(getattr(model, 'output_names', ['prediction']))
    for name in wanted or ():
        if name not in available:
            raise ConfigError(f'output {name!r} is unknown; the model has {available}.')
    return [name for name in available if wanted is None or name in wanted]


def require_file(checkpoint: str) -> None:
    """Raise ``FileNotFoundError`` for what is neither a file nor an address that mmengine reads."""
    if '://' not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f'checkpoint {checkpoint!r} does not exist.')


def refuse_existing(*files: str | Path | None, force: bool) -> None:
    """Raise ``FileExistsError`` for a folder, and for a file that is there without ``force``."""
    for file in files:
        if file and (Path(file).is_dir() or (Path(file).exists() and not force)):
            raise FileExistsError(f'{str(file)!r} exists; name another place, or add --force.')


def split_logits(model: BaseSegmentor, logits: Tensor) -> dict[str, Tensor]:
    """Logits of every output, of which the model has returned all in one."""
    split = getattr(model, 'split_outputs', None)
    return split(logits) if split else dict(prediction=logits)


def load_weights(model: nn.Module, checkpoint: str) -> dict[str, Any]:
    """Give a model the weights of a checkpoint.

    Args:
        model: The model.
        checkpoint: File, or an address that mmengine reads.

    Returns:
        All that the checkpoint holds.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The weights do not fit the model.
    """
    content = read_checkpoint(checkpoint)
    apply_weights(model, content.get('state_dict', content), checkpoint)
    return content


def read_checkpoint(checkpoint: str) -> dict[str, Any]:
    """Read a file, or what is at an address that mmengine reads, to the CPU."""
    require_file(checkpoint)
    return CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')


def apply_weights(model: nn.Module, weights: dict[str, Any], checkpoint: str) -> None:
    """Give a model weights, all that it has and no others.

    Args:
        model: The model.
        weights: The weights by name.
        checkpoint: What errors call their file.

    Raises:
        CheckpointError: The weights do not fit the model.
    """
    try:  # asked first, since some modules adapt weights of older versions
        refused = any(model.load_state_dict(weights, strict=False))
    except RuntimeError:
        refused = True
    if refused:
        raise CheckpointError(
            f'checkpoint {checkpoint!r} does not fit the config: '
            f'{compare_weights(model, weights)}; use the config it was trained with.'
        )


def _dataset_meta(meta: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """Classes and palette."""
    known = dict(meta.get('dataset_meta') or {})
    if not known.get('classes'):
        dataset = next(iter_datasets(cfg.test_dataloader.dataset))
        # Asked of the class: some datasets cannot be built without their files.
        known = dict(dataset.get('metainfo') or class_of(dataset, DATASETS).METAINFO)
        if not known.get('classes'):
            raise ConfigError(
                'neither the checkpoint nor the config names the classes; set '
                'test_dataloader.dataset.metainfo=dict(classes=…, palette=…).'
            )
    if not known.get('palette'):
        random = np.random.default_rng(0)
        known['palette'] = random.integers(0, 256, (len(known['classes']), 3)).tolist()
    return {key: known[key] for key in ('classes', 'palette')}
