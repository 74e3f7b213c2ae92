"""Models by name, and pairs of backbones by their names."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log

from ..config import forget_pretrained, load_config
from ..config.class_check import find_heads
from ..config.load import PACKAGE, shipped_configs
from ..errors import ConfigError, first_few
from .coop_model import CoopModel
from .model import apply_weights, read_checkpoint

#: Networks that have a name here, and what the shipped configs call them.
NETWORKS = dict(mobilenet_v2='mnv2', resnet101='r101', xception65='x65')
#: ImageNet's, in 0 to 255.
NORMALIZE = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
OUTPUT_STRIDE, LOW_LEVEL_STRIDE = 16, 4


def create_model(
    name: str | None = None,
    *,
    num_classes: int | None = None,
    topology: str | Mapping[str, Sequence[str]] | None = None,
    head: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    checkpoint: str | None = None,
    **networks: str | Mapping[str, Any],
) -> CoopModel:
    """Create a model by the name of a config, or out of networks that cooperate.

    Args:
        name: Name of a config, see :func:`list_models`, or a config file. Defaults to None: the
            networks are given.
        num_classes: Number of classes. Defaults to None: the config's; networks need it.
        topology: Who sends to whom, see :class:`CoopHead`. Defaults to None: the config's, or
            ``'cross'``.
        head: What else to set in the decode head, such as ``channels`` or ``fusion``. Defaults to
            None. The head of networks is a :class:`CrossCoopASPPHead` if no ``type`` is given.
        pretrained: Whether the backbones get pretrained weights, downloaded if need be. Defaults
            to False.
        checkpoint: Weights of a whole model, as mmseg's training writes them. Classifiers for
            another number of classes than ``num_classes`` are left out: new ones are initialised,
            and a warning names them. Defaults to None.
        **networks: Networks by names of your choice, as many as you like; one alone is a plain
            DeepLabV3+. Each is the name of a network (``mobilenet_v2``, ``resnet101`` or
            ``xception65``), ``timm/NAME`` for one of timm's, or the config of any backbone of
            mmseg. The named networks go to output stride 16, those of timm if they can.

    Returns:
        The model, in training mode.

    Raises:
        FileNotFoundError: There is no such config; the message names similar ones.
        ConfigError: A network is unknown, or an argument does not fit.
        CheckpointError: The checkpoint does not fit the model.

    Example:
        >>> import mmseg_coop
        >>> model = mmseg_coop.create_model(
        ...     'cross-coop_mnv2-effl0-d16_1xb6-600_camvid-180x240', num_classes=5
        ... )
        >>> model.segmentor.output_names
        ('top', 'bottom', 'ensemble')
    """
    if (name is None) == (not networks):
        hint = ''.join(_hint(_similar_argument(given)) for given in networks)
        raise ConfigError(
            "create_model takes either the name of a config or networks, such as top='resnet101', "
            f'but got {name!r} and {", ".join(networks) or "no network"}.{hint}'
        )
    try:
        cfg = Config(dict(model=load_config(name).model if name else _model_of(networks)))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{error} list_models() lists them; networks have names of your choice, as in '
            "net='timm/resnet50'."
        ) from None
    if topology is not None:
        head = {**(head or {}), 'topology': topology}
    if head:
        cfg.model.decode_head.update(head)
    if num_classes is not None:
        paths = [path for path, _ in find_heads(cfg.model)] or ['model.decode_head.num_classes']
        cfg.merge_from_dict(dict.fromkeys(paths, num_classes))
    if checkpoint or not pretrained:
        forget_pretrained(cfg.model)
    model = CoopModel(config=cfg.model.to_dict())
    if checkpoint:
        content = read_checkpoint(checkpoint)
        weights = content.get('state_dict', content)
        if num_classes is not None:
            weights = _with_new_classifiers(model, weights, checkpoint)
        apply_weights(model.segmentor, weights, checkpoint)
    else:
        _initialize(model)
    return model


def list_models(filter: str | Sequence[str] = '') -> list[str]:
    """List the names of the configs that :func:`create_model` takes.

    Args:
        filter: Pattern with wildcards, or several, as of ``timm.list_models``. Defaults to ``''``:
            all.

    Returns:
        The names, sorted.

    Example:
        >>> from mmseg_coop import list_models
        >>> list_models('cross-coop_*camvid-1*')
        ['cross-coop_mnv2-effl0-d16_1xb6-600_camvid-180x240',
         'cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128']
    """
    names = sorted(name.removesuffix('.py') for name in shipped_configs())
    patterns = [filter] if isinstance(filter, str) else filter
    return [name for name in names if any(fnmatch.fnmatch(name, p or '*') for p in patterns)]


def _model_of(networks: Mapping[str, Any]) -> dict[str, Any]:
    """Config of a model of networks."""
    backbones, normalize = {}, {}
    for name, network in networks.items():
        backbones[name], normalize[name] = _backbone(name, network)
    return dict(
        type='CrossCoopEncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', bgr_to_rgb=True, **NORMALIZE),
        backbone=dict(
            type='CoopBackbone',
            networks=backbones,
            normalize={name: own for name, own in normalize.items() if own != NORMALIZE},
        ),
        decode_head=dict(
            type='CrossCoopASPPHead',
            networks={name: {} for name in networks},
            loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),  # as of PyTorch
        ),
    )


def _backbone(name: str, network: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config of a network's backbone, and the normalisation that its weights need."""
    if isinstance(network, Mapping):
        return dict(network), NORMALIZE
    if network in NETWORKS:
        short = NETWORKS[network]
        file = PACKAGE / f'.mim/configs/_base_/models/deeplabv3plus_{short}-d16.py'
        model = Config.fromfile(file).model.to_dict()
        return model['backbone']['networks'][short], {
            key: model['data_preprocessor'][key] for key in NORMALIZE
        }
    prefix, _, kind = str(network).partition('/')
    if prefix == 'timm' and timm.is_model(kind):
        return _of_timm(kind)
    known = [*NETWORKS, *(f'timm/{kind}' for kind in timm.list_models())]
    similar = _similar_argument(name)
    for text in (str(network), f'timm/{network}'):
        similar = similar or difflib.get_close_matches(text, known)
    raise ConfigError(
        f'the network {name}={network!r} is unknown; give {", ".join(NETWORKS)}, timm/NAME '
        f'(timm.list_models() lists them) or the config of a backbone.{_hint(similar)}'
    )


def _similar_argument(name: str) -> list[str]:
    """The argument that the name of a network may have been meant for."""
    return difflib.get_close_matches(name, inspect.signature(create_model).parameters, n=1)


def _hint(similar: Sequence[str]) -> str:
    return f' Did you mean {", ".join(similar)}?' if similar else ''


def _of_timm(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    levels: Any
    for options in (dict[str, Any](output_stride=OUTPUT_STRIDE), {}):
        try:
            with torch.device('meta'):
                levels = timm.create_model(kind, features_only=True, **options).feature_info
            break
        except (AssertionError, TypeError):  # how timm says that the stride is what it is
            if not options:
                raise
    distance = [abs(stride - LOW_LEVEL_STRIDE) for stride in levels.reduction()]
    low_level = distance.index(min(distance))
    backbone = dict(
        type='TIMMBackbone',
        model_name=kind,
        features_only=True,
        pretrained=True,
        out_indices=[levels.out_indices[low_level], levels.out_indices[-1]],
        **options,
    )
    declared = timm.get_pretrained_cfg(kind)
    scale = {key: [round(255 * value, 6) for value in getattr(declared, key)] for key in NORMALIZE}
    return backbone, scale


def _with_new_classifiers(
    model: CoopModel, weights: Mapping[str, Any], checkpoint: str
) -> dict[str, Any]:
    """Replace the classifiers of other classes by initialised ones, as timm does."""
    own = model.segmentor.state_dict()
    new = {
        name: own[name]
        for name, value in weights.items()
        if '.conv_seg.' in name
        and name in own
        and value.shape != own[name].shape
        and value.shape[1:] == own[name].shape[1:]
    }
    if new:
        _initialize(model)
        print_log(
            f'checkpoint {checkpoint!r} is of another number of classes; new classifiers have to '
            f'be trained: {first_few(new)}.',
            'current',
            logging.WARNING,
        )
    return {**weights, **new}


def _initialize(model: CoopModel) -> None:
    """Initialise the weights, without a line of log for each of them."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        model.segmentor.init_weights()
    finally:
        logger.setLevel(level)
