"""Test-time augmentation for models with several outputs."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import SegTTAModel
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor
from typing_extensions import override

from .cross_coop_encoder_decoder import CrossCoopEncoderDecoder


@MODELS.register_module()
class CoopTTAModel(SegTTAModel):
    """Averages every output's class probabilities over the augmentations.

    mmseg's ``SegTTAModel`` merges ``seg_logits``, hence the chosen output only. Here a sample has
    ``pred_sem_seg`` and ``pred_outputs``, but no logits. With a model that is not a
    :class:`CrossCoopEncoderDecoder` this class is mmseg's.

    Args:
        module: The model, or its config.
        **kwargs: Arguments of mmengine's ``BaseTTAModel``.
    """

    def __init__(self, module: Any, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        if isinstance(self.module, CrossCoopEncoderDecoder):
            self.module.test_cfg.keep_logits = True

    @override
    def merge_preds(self, data_samples_list: list[SampleList]) -> SampleList:
        if not isinstance(self.module, CrossCoopEncoderDecoder):
            return super().merge_preds(data_samples_list)
        return [self._merge(samples) for samples in data_samples_list]

    def _merge(self, samples: SampleList) -> Any:
        merged = samples[0]
        maps = {
            name: self._label_map(
                torch.stack([sample.logits_outputs.get(name) for sample in samples])
            )
            for name in self.module.output_names
        }
        del merged.logits_outputs, merged.seg_logits
        merged.pred_outputs = PixelData(**maps)
        merged.pred_sem_seg = PixelData(data=maps[self.module.chosen_output])
        return merged

    def _label_map(self, seg_logits: Tensor) -> Tensor:
        """Label map ``(1, H, W)`` from the logits ``(augmentations, C, H, W)`` of an output."""
        if seg_logits.shape[1] == 1:
            # mmseg has turned the logits of a binary model into probabilities already.
            probability = seg_logits.mean(dim=0)
            return (probability > self.module.decode_head.threshold).to(probability)
        return seg_logits.softmax(dim=1).mean(dim=0).argmax(dim=0, keepdim=True)
