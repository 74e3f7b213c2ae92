"""Encoder-decoder segmentor with one output a network, and their ensemble."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import OptSampleList, SampleList
from torch import Tensor, nn
from typing_extensions import Self, override

from ...registry import class_of
from .._channels import ChannelsUnknown, PyramidChannels, normalized_channels
from .._checks import check_test_cfg
from ..backbones import CoopBackbone
from ..cooperation import CooperativePaths
from ..cooperation.networks import ENSEMBLE, ensemble_of
from ..decode_heads import CoopHead
from ..necks import CoopNeck


@MODELS.register_module()
class CrossCoopEncoderDecoder(EncoderDecoder):
    """Several networks that cooperate; every network's prediction and their ensemble in one pass.

    The logits of the networks travel through mmseg's whole and sliding inference stacked along
    the channels, ``(N, num_networks * C, H, W)``, and are taken apart behind it. The ensemble is
    the sum of the networks' logits ("adding the final output", section 4.3 of the paper); with
    ``out_channels=1``, where a threshold is put on one logit a pixel, it is their mean.

    ``test_cfg=dict(output=…)`` chooses the output that becomes ``pred_sem_seg``: a network's name
    or ``'ensemble'``. It defaults to the ensemble, or to the network where there is only one. A
    predicted sample holds

    - ``pred_sem_seg`` and ``seg_logits``: the chosen output, as for any model of mmseg;
    - ``pred_outputs``: the label map of every output, ``(1, H, W)`` each, under the output's name;
    - the metainfo ``output``, the name of the chosen output, and ``output_names``, all in order.

    Args:
        backbone: Config of a :class:`CoopBackbone`. Its ``input_normalize`` is filled in from the
            data preprocessor.
        decode_head: Config of a :class:`CoopHead`. Channels of the feature pyramids that it leaves
            out are found; those that it gives are compared with the ones of the backbones before
            the training, see :meth:`check_channels`, and with the first image.
        neck: Config of a :class:`CoopNeck`. Defaults to None.
        frozen: Networks that are not trained, such as the teachers of another one: backbone, neck,
            heads and what merges what they receive keep weights and statistics and have no loss.
            Their weights come from ``load_from`` of the config, or from a ``Pretrained``
            ``init_cfg`` of the model or its head. Defaults to ``()``.
        data_preprocessor: Config of the data preprocessor. Defaults to None.
        test_cfg: mmseg's test settings (``mode``, ``crop_size``, ``stride``) and ``output``.
            Defaults to ``dict(mode='whole')``.
        **kwargs: Further arguments of mmseg's ``EncoderDecoder``. An ``auxiliary_head`` is a
            :class:`CoopHead`, or a list of them, of networks that train with one.

    Raises:
        ValueError: Unknown output, or a part that does not fit several networks.

    Example:
        >>> import torch
        >>> model = CrossCoopEncoderDecoder(
        ...     backbone=dict(
        ...         type='CoopBackbone',
        ...         networks=dict(
        ...             top=dict(type='MobileNetV2', out_indices=(1, 6)),
        ...             bottom=dict(type='ResNetV1c', depth=18, out_indices=(0, 3)),
        ...         ),
        ...     ),
        ...     decode_head=dict(
        ...         type='CrossCoopASPPHead',
        ...         networks=dict(top={}, bottom={}),
        ...         channels=16,
        ...         num_classes=3,
        ...     ),
        ... ).eval()
        >>> sample = model.predict(torch.rand(1, 3, 64, 64))[0]
        >>> sorted(sample.pred_outputs.keys()), tuple(sample.pred_sem_seg.shape)
        (['bottom', 'ensemble', 'top'], (64, 64))
    """

    def __init__(
        self,
        *,
        backbone: dict[str, Any],
        decode_head: dict[str, Any],
        neck: dict[str, Any] | None = None,
        frozen: Sequence[str] = (),
        data_preprocessor: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.neck_cfg = neck  # built with the channels of the backbones, which come first
        test_cfg = ConfigDict({'mode': 'whole', **(test_cfg or {})})
        check_test_cfg(test_cfg)
        super().__init__(
            backbone=_with_input_normalize(backbone, data_preprocessor),
            decode_head=decode_head,
            data_preprocessor=data_preprocessor,
            test_cfg=test_cfg,
            **kwargs,
        )
        # The sliding window sums up this many maps.
        self.out_channels = len(self.decode_head.network_names) * self.decode_head.out_channels
        self.chosen_output  # noqa: B018  # an unknown output is said now, not after the training
        self.frozen = frozen
        self._freeze()

    def _freeze(self) -> None:
        names = self.decode_head.network_names
        trained = [name for name in names if name not in self.frozen]
        unknown = [name for name in self.frozen if name not in names]
        if unknown or not trained:
            raise ValueError(
                f'frozen={list(self.frozen)} has to name some of the networks {list(names)}, but '
                'not all.'
            )
        for head in self.modules():
            if isinstance(head, CoopHead):
                head.frozen = self.frozen
                for transfer in head.transfers:
                    if transfer.student in self.frozen:
                        raise ValueError(
                            f'transfer has the student {transfer.student!r}, which is frozen; '
                            'teach another network, or do not freeze this one.'
                        )
        kept = [weight for part in self.parts_of(self.frozen) for weight in part.parameters()]
        known = {*map(id, kept)}
        for part in self.parts_of(trained):
            if not known.isdisjoint(map(id, part.parameters())):
                raise ValueError(
                    f'frozen={list(self.frozen)} share weights with {trained}; freeze none of them.'
                )
        for weight in kept:
            weight.requires_grad_(False)

    def parts_of(self, networks: Collection[str]) -> list[nn.Module]:
        """Backbones, necks and heads of networks, and what merges what these receive."""
        parts: list[nn.Module] = []
        for module in self.modules():
            if isinstance(module, (CoopBackbone, CoopNeck, CoopHead)):
                parts += [module.networks[name] for name in networks if name in module.networks]
            elif isinstance(module, CooperativePaths):
                parts += [part for name in networks for part in module.parts_of(name)]
        return parts

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.parts_of(self.frozen):
            part.eval()
        return self

    @override
    def _init_decode_head(self, decode_head: dict[str, Any]) -> None:
        channels_behind = partial(
            PyramidChannels,
            getattr(self.backbone, 'networks', {}),
            size=getattr(self.data_preprocessor, 'size', None),
            inputs=getattr(self.backbone, 'inputs', {}),
            image_channels=normalized_channels(self.data_preprocessor),
        )
        self.pyramid_channels = channels_behind({})
        if self.neck_cfg is not None:
            self.neck = MODELS.build(self._with_channels('neck', self.neck_cfg, CoopNeck))
            self.pyramid_channels = channels_behind(self.neck.networks)
        super()._init_decode_head(self._with_channels('decode_head', decode_head, CoopHead))

    @override
    def _init_auxiliary_head(self, auxiliary_head: dict[str, Any] | list | None) -> None:
        if isinstance(auxiliary_head, list):
            auxiliary_head = [
                self._with_channels(f'auxiliary_head.{index}', head, CoopHead)
                for index, head in enumerate(auxiliary_head)
            ]
        elif auxiliary_head is not None:
            auxiliary_head = self._with_channels('auxiliary_head', auxiliary_head, CoopHead)
        super()._init_auxiliary_head(auxiliary_head)
        self._check_heads()

    def _with_channels(self, part: str, config: dict[str, Any], kind: type) -> dict[str, Any]:
        """Tell a part of several networks where channels come from that its config leaves out."""
        name = config.get('type')
        found = class_of(config, MODELS)
        if not inspect.isclass(found) or not issubclass(found, kind):
            raise ValueError(
                f'{part} type={name!r} has no networks; use {kind.__name__}, which has one for '
                'each, or EncoderDecoder for a single network.'
            )
        known, names = list(self.pyramid_channels.backbones), list(config.get('networks', ()))
        if not {*known} >= {*names} or (part == 'decode_head' and names and {*known} > {*names}):
            raise ValueError(
                f'backbone.networks has the names {known}, {part}.networks {names}; use the same '
                'names in both.'
            )
        return {**config, 'pyramid_channels': self.pyramid_channels}

    def _check_heads(self) -> None:
        for head in self.modules():
            if isinstance(head, CoopHead):
                head.check_channels(self.pyramid_channels)

    def check_channels(self) -> None:
        """Compare the channels that a config gives with those of the backbones.

        Raises:
            ValueError: A level is missing or has other channels, or a backbone takes images of
                other channels.
        """
        for network in self.backbone.networks:
            with suppress(ChannelsUnknown):  # the first image shows them
                self.pyramid_channels[network]
        self._check_heads()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs, the networks in order, then the ensemble if there are several."""
        names = self.decode_head.network_names
        return (*names, ENSEMBLE) if len(names) > 1 else names

    @property
    def chosen_output(self) -> str:
        """Name of the output that becomes ``pred_sem_seg``."""
        output = self.test_cfg.get('output', self.output_names[-1])
        if output not in self.output_names:
            raise ValueError(
                f'test_cfg.output={output!r} is unknown; this model has the outputs '
                f'{list(self.output_names)}.'
            )
        return output

    def split_outputs(self, seg_logits: Tensor) -> dict[str, Tensor]:
        """Take the stacked logits of the networks apart.

        Args:
            seg_logits: ``(N, num_networks * C, H, W)``.

        Returns:
            Every output's logits, ``(N, C, H, W)``, the ensemble among them.
        """
        names = self.decode_head.network_names
        outputs = dict(zip(names, seg_logits.chunk(len(names), dim=1), strict=True))
        if len(names) > 1:
            # The threshold of a single logit is that of one network.
            mean = self.decode_head.out_channels == 1
            outputs[ENSEMBLE] = ensemble_of(outputs.values(), mean=mean)
        return outputs

    @override
    def val_step(self, data: dict[str, Any]) -> SampleList:
        # Images of several sizes one by one: padded to one size, they would be predicted
        # differently, and mmseg's data preprocessor refuses them.
        if len({image.shape for image in data['inputs']}) == 1:
            return super().val_step(data)
        step = super().val_step
        return [
            sample
            for index in range(len(data['inputs']))
            for sample in step({key: part[index : index + 1] for key, part in data.items()})
        ]

    test_step = val_step

    @override
    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        seg_logits = self.decode_head.predict(
            self.extract_feat(inputs), batch_img_metas, self.test_cfg
        )
        return torch.cat(list(seg_logits.values()), dim=1)

    @override
    def postprocess_result(
        self, seg_logits: Tensor, data_samples: OptSampleList = None
    ) -> SampleList:
        chosen = self.chosen_output
        outputs = self.split_outputs(seg_logits)
        maps: list[dict[str, Tensor]] = [{} for _ in seg_logits]
        logits: list[dict[str, Tensor]] = [{} for _ in seg_logits]
        # The chosen output comes last, so that it is the one that stays in the samples.
        for name in sorted(outputs, key=lambda name: name == chosen):
            # The largest of many classes is found several times faster where they lie side by side.
            each = outputs[name].contiguous(memory_format=torch.channels_last)
            samples = super().postprocess_result(each, data_samples)
            for index, sample in enumerate(samples):
                maps[index][name] = sample.pred_sem_seg.data
                if self.test_cfg.get('keep_logits', False):
                    logits[index][name] = sample.seg_logits.data
        for index, sample in enumerate(samples):
            sample.pred_outputs = PixelData(**{name: maps[index][name] for name in outputs})
            if logits[index]:
                sample.logits_outputs = PixelData(**logits[index])
            sample.set_metainfo(dict(output=chosen, output_names=self.output_names))
        return samples


def _with_input_normalize(
    backbone: dict[str, Any], data_preprocessor: dict[str, Any] | None
) -> dict[str, Any]:
    """Tell the backbone how the data preprocessor normalises images, the one place that says so."""
    if not (backbone.get('normalize') or backbone.get('inputs')):
        return backbone
    known = {key: (data_preprocessor or {}).get(key) for key in ('mean', 'std')}
    if None in known.values():
        return backbone
    given = backbone.get('input_normalize')
    if given is not None and {key: list(value) for key, value in given.items()} != {
        key: list(value) for key, value in known.items() if value is not None
    }:
        raise ValueError(
            f'backbone.input_normalize={dict(given)} contradicts the data preprocessor, which uses '
            f'{known}; leave input_normalize out.'
        )
    return {**backbone, 'input_normalize': known}
