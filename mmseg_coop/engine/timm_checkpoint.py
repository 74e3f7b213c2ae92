"""Checkpoints of timm under MMEngine's names: ``timm://xception65.tf_in1k``."""

from __future__ import annotations

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..errors import did_you_mean
from ..models.backbones.xception import convert_timm_state_dict

_PREFIX = 'timm://'
_CONVERTED = ('xception41', 'xception65', 'xception71')


@CheckpointLoader.register_scheme(prefixes=_PREFIX)
def load_from_timm(
    filename: str, map_location: str | torch.device | None = None
) -> dict[str, Tensor]:
    """Load the pretrained weights of a timm model, from its cache or the network.

    MMEngine calls this wherever it takes the path of a checkpoint: ``init_cfg``, ``load_from``,
    the tools' command lines.

    Args:
        filename: ``timm://`` and the name of a timm model, with or without the tag of its weights.
        map_location: Device to put the weights on. Defaults to the CPU.

    Returns:
        The state dict. That of ``xception41``, ``xception65`` and ``xception71`` has the names of
        :class:`~mmseg_coop.models.backbones.xception.Xception`, every other the names of timm.

    Raises:
        ValueError: If timm has no weights of this name.
    """
    # Here, since timm is only needed by those who use it.
    import timm
    from timm.models import is_model_pretrained

    name = filename.removeprefix(_PREFIX)
    if not is_model_pretrained(name):
        # other weights of the architecture asked for, or else of another
        known = timm.list_pretrained(f'{name.partition(".")[0]}.*')
        form, others = ' Did you mean {}?', ' or '.join(known[:5])
        hint = form.format(others) if known else did_you_mean(name, timm.list_pretrained(), form)
        raise ValueError(
            f'timm {timm.__version__} has no pretrained weights called {name!r}.{hint} '
            'timm.list_pretrained() lists all names.'
        )
    state_dict: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    if name.partition('.')[0] in _CONVERTED:
        state_dict = convert_timm_state_dict(state_dict)
    return {key: value.to(map_location or 'cpu') for key, value in state_dict.items()}
