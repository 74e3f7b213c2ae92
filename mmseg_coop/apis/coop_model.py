"""A segmentor as a plain module of PyTorch: images in, logits of every output out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import Self, override

from ..config import check_config, forget_pretrained
from ..config.class_check import check_classes
from ..engine.loader_guards import refuse_code
from ..errors import CheckpointError, ConfigError, DataError, InputError, did_you_mean
from ..models._channels import image_channels
from ..models.data_preprocessor import reverse_colours
from ..visualization.panels import label_maps
from .convert import read_weights
from .model import apply_weights, build_model, split_logits

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'  # the hub's names
IMAGE_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: How far beyond 0 to 1 images may lie, as interpolation leaves them.
SLACK = 0.5


class CoopModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name='mmseg-coop',
    pipeline_tag='image-segmentation',
):
    """A segmentor of mmseg for a training loop of one's own; :func:`create_model` makes them.

    Images are RGB: uint8 of 0 to 255 or floating point of 0 to 1, as torchvision gives them. The
    model normalises them as its config says, each network's weights as they need it, so there is
    no mean and std to get wrong outside; images that have been normalised already are refused.
    Further channels, such as depth, follow the three in the units of the config's data
    preprocessor, as floating point. Image and label may have any size that the backbones take.

    The outputs are those of the segmentor: every network and ``ensemble``, of several networks the
    sum of their logits; a segmentor of mmseg with a single output calls it ``prediction``.

    ``save_pretrained(folder)``, ``from_pretrained(folder)`` and ``push_to_hub(repo_id)`` are those
    of ``huggingface_hub``. The weights are called as in mmseg's checkpoints. A folder is data: its
    config may name registered classes only.

    Args:
        config: Config of the segmentor, in the values that JSON has (tuples become lists).

    Attributes:
        segmentor: The segmentor, for all functions that take one of mmseg's models.
        config: The config, without pretrained weights.

    Raises:
        ConfigError: The config does not fit what it names, or JSON cannot hold it.

    Example:
        >>> import torch
        >>> from mmseg_coop import create_model
        >>> model = create_model(
        ...     top='mobilenet_v2', bottom='timm/resnet18', num_classes=3, head=dict(channels=16)
        ... )
        >>> x = torch.rand(2, 3, 64, 48)
        >>> {name: tuple(logits.shape) for name, logits in model(x).items()}
        {'top': (2, 3, 64, 48), 'bottom': (2, 3, 64, 48), 'ensemble': (2, 3, 64, 48)}
        >>> model.loss(x, torch.randint(0, 3, (2, 64, 48))).ndim
        0
    """

    segmentor: Any

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        try:  # what is built is what can be saved
            self.config: dict[str, Any] = json.loads(json.dumps(config))
        except TypeError as error:
            raise ConfigError(f'the config of a model has to be data: {error}.') from error
        cfg = Config(dict(model=self.config))
        check_config(cfg)
        check_classes(cfg)
        self.segmentor = revert_sync_batchnorm(build_model(cfg, pretrained=True))
        forget_pretrained(self.config)
        self._tell_device()

    @override
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the logits of every output.

        Args:
            x: RGB images ``(N, 3, H, W)``: uint8, 0 to 255, or floating point, 0 to 1. Of a model
                with further channels ``(N, C, H, W)``.

        Returns:
            Logits ``(N, num_classes, H, W)`` by output. They carry gradients, but only the
            networks' own are for a loss: ``ensemble`` is made of them.

        Raises:
            InputError: Shape or range of ``x`` is another.
        """
        inputs = self._preprocess(x)
        metas = [dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), inputs.shape[-2:])]
        height, width = x.shape[-2:]
        logits = self.segmentor.encode_decode(inputs, metas * len(x))[..., :height, :width]
        return split_logits(self.segmentor, logits)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of the config, summed over the networks and auxiliary heads.

        Args:
            x: Images as of :meth:`forward`.
            y: Labels ``(N, H, W)``, integers; ``ignore_index`` of the heads, 255 by default, marks
                pixels that do not count.

        Returns:
            The loss, a scalar.

        Raises:
            InputError: Shape or range of ``x`` or ``y`` is another.
        """
        inputs = self._preprocess(x)
        self._check_labels(x, y)
        labels = y.to(inputs.device, torch.long)
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
        loss, _ = self.segmentor.parse_losses(self.segmentor.loss(inputs, samples))
        return loss

    @torch.no_grad()
    def predict(self, images: Any) -> Any:
        """Segment images as mmseg's inference does, ``test_cfg`` (whole or slide) included.

        The model predicts in evaluation mode, and is left in the mode that it was in.

        Args:
            images: The path of an image, a ``PIL.Image``, or an array ``(H, W, 3)`` as OpenCV and
                the other tools of the project have it: BGR, uint8. Or a list of them, of any sizes.
                A model with further channels takes arrays ``(H, W, C)``, with colours of 0 to 255.

        Returns:
            Label maps ``(H, W)`` of the image's own size by output; of a list, a list of that.

        Raises:
            FileNotFoundError: There is no such image.
            DataError: A file is no image.
            InputError: An image is something else.
        """
        if isinstance(images, (list, tuple)):
            return [self.predict(image) for image in images]
        image = _read(images, image_channels(self.segmentor))
        size = image.shape[:2]
        sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size))
        data = dict(
            inputs=[torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))],
            data_samples=[sample],
        )
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            (sample,) = self.segmentor.test_step(data)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return label_maps(sample, truth=False)

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)
        self._tell_device()
        return self

    def _tell_device(self) -> None:
        # mmengine's notes its device where it is moved itself, which neither nn.Module does nor
        # torch.device, under which it may be built.
        self.segmentor.data_preprocessor.to(next(self.parameters()).device)

    def _preprocess(self, x: Tensor) -> Tensor:
        preprocessor = self.segmentor.data_preprocessor
        channels = image_channels(self.segmentor)
        if x.ndim != 4 or x.shape[1] != channels or x.dtype not in IMAGE_TYPES:
            raise InputError(
                f'x is {x.dtype} of shape {tuple(x.shape)}; give RGB images (N, {channels}, H, W), '
                'uint8 of 0 to 255 or floating point of 0 to 1.'
            )
        if x.is_floating_point():
            colours, further = x[:, :3], x[:, 3:]
            low, high = (float(value) for value in colours.aminmax())
            if not -SLACK <= low <= high <= 1 + SLACK:
                raise InputError(
                    f'x lies in {low:.3g} to {high:.3g}; give floating point images of 0 to 1 '
                    '(the model normalises them), or uint8 of 0 to 255.'
                )
            x = torch.cat([255 * colours, further], dim=1)
        # What mmseg's pipelines load, of which the data preprocessor makes what the model takes.
        return preprocessor(dict(inputs=list(reverse_colours(x))))['inputs']

    def _check_labels(self, x: Tensor, y: Tensor) -> None:
        expected = (len(x), *x.shape[-2:])
        if y.shape != expected or y.is_floating_point():
            raise InputError(
                f'y is {y.dtype} of shape {tuple(y.shape)}; give the labels of x as integers of '
                f'shape {expected}.'
            )
        head: Any = self.segmentor.decode_head
        head = head[-1] if isinstance(head, nn.ModuleList) else head  # of a cascade
        number, ignored = head.num_classes, head.ignore_index
        strange = y[(y != ignored) & ((y < 0) | (y >= number))]
        if len(strange):
            raise InputError(
                f'y holds the label {int(strange[0])}; the classes are 0 to {number - 1}, and '
                f'{ignored} marks pixels that do not count.'
            )

    @override
    def _save_pretrained(self, save_directory: Path) -> None:
        # One by one: what is shared has several names, and the format holds no views.
        kind = torch.contiguous_format
        weights = {
            name: value.detach().clone(memory_format=kind)
            for name, value in self.segmentor.state_dict().items()
        }
        save_file(weights, save_directory / WEIGHTS)
        # Here, since the hub would sort the networks, whose order has a meaning.
        text = json.dumps(self.config, indent=2)
        (save_directory / CONFIG).write_text(f'{text}\n', encoding='utf-8')

    @classmethod
    @override
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a model that ``save_pretrained`` or ``push_to_hub`` has written, to evaluate it.

        Args:
            pretrained_model_name_or_path: A folder, or else the hub's ``USER/NAME``.
            **kwargs: As of the hub's, such as ``revision``.

        Returns:
            The model, in evaluation mode.

        Raises:
            FileNotFoundError: There is no such folder, or it lacks a file.
            CheckpointError: The files are damaged, do not fit each other, or name code.
        """
        place = Path(pretrained_model_name_or_path)
        is_name = re.fullmatch(r'[\w.-]+/[\w.-]+', str(pretrained_model_name_or_path))
        if not place.is_dir() and (place.parent.is_dir() or not is_name):
            folders = sorted(path.parent.name for path in place.parent.glob(f'*/{CONFIG}'))
            hint = did_you_mean(place.name, folders, ' Did you mean {}?')
            raise FileNotFoundError(f'there is no folder {str(place)!r}.{hint}')
        try:
            return super().from_pretrained(place if place.is_dir() else str(place), **kwargs)
        except json.JSONDecodeError as error:
            raise CheckpointError(f'{place / CONFIG} is damaged: {error}.') from error

    @classmethod
    @override
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None = None, **kwargs: Any
    ) -> Self:
        if config is None:
            raise FileNotFoundError(f'{model_id} has no {CONFIG}; save_pretrained writes one.')
        refuse_code(config, f'{model_id}/{CONFIG}')
        forget_pretrained(config)
        return super()._from_pretrained(model_id=model_id, config=config, **kwargs)

    @classmethod
    @override
    def _load_as_safetensor(
        cls, model: Any, model_file: str, map_location: str, strict: bool
    ) -> Any:
        apply_weights(model.segmentor, read_weights(model_file)[0], model_file)
        return model.to(map_location).eval()


def _read(image: Any, channels: int) -> np.ndarray[Any, Any]:
    """Make of an image what mmseg's pipelines load: BGR and further channels, ``(H, W, C)``."""
    if channels > 3:
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != channels:
            shape = tuple(getattr(image, 'shape', ()))
            raise InputError(
                f'cannot predict {type(image).__name__} {shape or ""}; the model takes an array '
                f'(H, W, {channels}), BGR of 0 to 255 and then the further channels.'
            )
        return image.astype(np.float32)
    if isinstance(image, (str, Path)):
        array = mmcv.imread(str(image))
        if array is None:
            raise DataError(f'{image} is no image that OpenCV reads', path=str(image))
        return array
    if isinstance(image, Image.Image):
        return np.asarray(image.convert('RGB'))[..., ::-1]
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)):
        shape = tuple(getattr(image, 'shape', ()))
        raise InputError(
            f'cannot predict {type(image).__name__} {shape or ""}; give a path, a PIL.Image or an '
            'array (H, W, 3), BGR, uint8. For tensors there is forward.'
        )
    return image
