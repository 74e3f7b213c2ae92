"""Exports a trained model as ONNX and as a program of torch.export, checked against PyTorch."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmseg.models import BaseSegmentor
from torch import Tensor, nn

from ..config import image_size, load_config
from ..errors import CoopError, InputError
from ..models import CoopDataPreProcessor
from ..models._channels import image_channels
from ..models.data_preprocessor import reverse_colours
from ..version import __version__
from .model import choose_outputs, load_model, refuse_existing, split_logits
from .optimize import optimize_for_inference

Size = tuple[int, int]
#: Takes images (N, C, H, W), float32, as DeployedModel does; returns logits in the outputs' order.
Run = Callable[[np.ndarray], Sequence[np.ndarray]]
SMALLEST_SIDE = 32
#: Transforms that load images, which an application does itself.
LOADING = ('LoadImageFromFile', 'LoadSegImage', 'LoadSecondImage')


def export_onnx(
    config: str,
    checkpoint: str,
    *,
    out: str | Path | None = None,
    size: Size | None = None,
    dynamic: bool = False,
    outputs: Sequence[str] | None = None,
    exporter: str = 'trace',
    opset: int | None = None,
    program: bool = False,
    tolerance: float = 1e-4,
    optimize: bool = False,
    force: bool = False,
    cfg_options: Sequence[str] | None = None,
) -> None:
    """Export a model, compare it with PyTorch, and only then put the files in their place.

    Args:
        config: Config file.
        checkpoint: Checkpoint: a file, or an address that mmengine reads.
        out: ONNX file to write. Defaults to None: beside the checkpoint, under its name.
        size: Height and width of the image. Defaults to None: those of the training.
        dynamic: Whether to take images of any size (and, by tracing, batches of any size). Defaults
            to False.
        outputs: Names of the outputs to export. Defaults to None: all.
        exporter: ``'trace'`` (the default), or ``'dynamo'``, which goes through ``torch.export``.
        opset: Version of the ONNX operators. Defaults to None: 17 by tracing, else 18.
        program: Whether to write what ``torch.export`` makes of the model as well, as a ``.pt2``
            file. Defaults to False.
        tolerance: Largest difference to PyTorch, relative to the largest logit, or to 1 if the
            logits are smaller. Defaults to 1e-4.
        optimize: Whether to fold batch norms. Defaults to False.
        force: Whether to replace files. Defaults to False.
        cfg_options: Values that override the config's, see :func:`load_config`. Defaults to None.

    Raises:
        CoopError: An argument does not fit the model or the installed packages, or what was
            exported computes something else; then nothing is written.
        OSError: A file does not exist, or exists without ``force``.
    """
    _check_exporter(exporter, opset, program, dynamic)
    files = _target_files(checkpoint, out, program, force)
    if size and min(size) < SMALLEST_SIDE:
        raise InputError(
            f'--size takes sides of at least {SMALLEST_SIDE}, not {"x".join(map(str, size))}'
        )
    cfg = load_config(config, cfg_options=cfg_options)
    height, width = size or image_size(cfg)
    model = load_model(cfg, checkpoint)
    if optimize:
        optimize_for_inference(model, channels_last=False)
    deployed = DeployedModel(model, choose_outputs(model, outputs)).eval().requires_grad_(False)
    values = _metadata(cfg, deployed, None if dynamic else (height, width))
    shapes = [(height, width)]
    if dynamic:  # another size, odd and in other proportions
        shapes.append((max(SMALLEST_SIDE, height * 3 // 4) | 1, (width + 18) | 1))
    batch = 2 if dynamic and exporter == 'trace' else 1
    example = torch.rand(batch, deployed.channels, height, width) * 255

    files[0].parent.mkdir(parents=True, exist_ok=True)
    # Written beside the target, checked, then renamed: no half or wrong file is ever left.
    with (
        tempfile.TemporaryDirectory(dir=files[0].parent, prefix='.export-') as folder,
        torch.no_grad(),
    ):
        parts = [Path(folder, file.name) for file in files]
        try:
            _write_onnx(deployed, example, parts[0], exporter, dynamic, opset)
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).partition('. Please')[0].splitlines()[0]
            other = 'dynamo' if exporter == 'trace' else 'trace'
            raise CoopError(
                f'the exporter {exporter!r} cannot write this model: {reason}; try --exporter '
                f'{other}.'
            ) from error
        _add_metadata(parts[0], values)
        run = onnx_runner(parts[0], deployed.outputs)
        for shape in shapes:
            _check(run, deployed, (batch, deployed.channels, *shape), tolerance, 'ONNX')
        if program:
            shapes += _write_program(deployed, example[:1], parts[1], dynamic, values)
            run = _program_runner(parts[1])
            for shape in shapes:
                _check(run, deployed, (1, deployed.channels, *shape), tolerance, 'torch.export')
        del run  # which keeps its file open
        for part, file in zip(parts, files, strict=True):
            os.replace(part, file)
            megabytes = file.stat().st_size / 2**20
            print(f'{file}: {megabytes:.1f} MiB, outputs {", ".join(deployed.outputs)}')


class DeployedModel(nn.Module):
    """A segmentor with its normalisation, from images to the logits of its outputs.

    An image has RGB of 0 to 255, then the further channels of the pipeline, such as depth, as these
    are stored.

    Args:
        model: The segmentor.
        outputs: Names of the outputs it returns, in order.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: BaseSegmentor, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.outputs = list(outputs)
        preprocessor = model.data_preprocessor
        mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
        #: Channels of the images.
        self.channels = image_channels(model)
        ones = torch.ones(self.channels, 1, 1, device=next(model.parameters()).device)
        self.register_buffer('mean', 0 * ones if mean is None else mean * ones)
        self.register_buffer('std', ones if std is None else std * ones)
        cfg = model.cfg.model.get('data_preprocessor') or {}
        converts = cfg.get('bgr_to_rgb') or cfg.get('rgb_to_bgr')
        # Files are loaded as BGR: without a conversion that is what the networks have learned on.
        # That of mmseg leaves images of other than three channels as they are.
        fits = self.channels == 3 or isinstance(preprocessor, CoopDataPreProcessor)
        self.takes_bgr = self.channels >= 3 and not (converts and fits)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the logits of every output, ``(N, K, H, W)``, of images ``(N, C, H, W)``."""
        x = (reverse_colours(image) if self.takes_bgr else image) - self.mean
        return self.logits(x / self.std)

    def logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """The same for images that are normalised already."""
        logits = self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
        split = split_logits(self.model, logits)
        return tuple(split[name] for name in self.outputs)


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) if function else set()


def _check_exporter(exporter: str, opset: int | None, program: bool, dynamic: bool) -> None:
    """Raise a CoopError if something is not installed, or not what this torch can do."""
    dynamo, exports = exporter == 'dynamo', _parameters(torch.onnx.export)
    packages = ['onnx', 'onnxruntime'] + ['onnxscript'] * dynamo
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    # Before torch 2.5 there is no other exporter here, and there are fewer opsets.
    low, high = (18, 23) if dynamo else (11, 20 if 'dynamo' in exports else 17)
    problem, found = '', f'this is {torch.__version__}'
    if missing:
        problem = f'the export needs {" and ".join(missing)}: pip install {" ".join(missing)}'
    elif dynamo and 'external_data' not in exports:
        problem = f'--exporter dynamo needs torch >= 2.5, {found}; use trace.'
    elif opset is not None and not low <= opset <= high:
        problem = f'--opset {opset}: the {exporter} exporter writes {low} to {high}.'
    elif program and 'dynamic_shapes' not in _parameters(getattr(torch.export, 'export', None)):
        problem = f'--program needs torch >= 2.4, {found}.'
    elif dynamic and (program or dynamo) and not hasattr(torch.export.Dim, 'AUTO'):
        problem = (
            f'--dynamic through torch.export needs torch >= 2.6, {found}; leave --dynamic out, or '
            'use --exporter trace without --program.'
        )
    if problem:
        raise CoopError(problem)


def _target_files(
    checkpoint: str, out: str | Path | None, program: bool, force: bool
) -> list[Path]:
    """The ONNX file, and the program's if it is wanted."""
    beside = Path(checkpoint)
    if '://' in checkpoint:  # an address: there is no beside
        beside = Path(beside.name)
    file = Path(out) if out else beside.with_suffix('.onnx')
    if file.suffix != '.onnx':
        raise InputError(f'--out {str(file)!r} has to end in .onnx.')
    files = [file, file.with_suffix('.pt2')] if program else [file]
    refuse_existing(*files, force=force)
    return files


def _metadata(cfg: Config, deployed: DeployedModel, fixed: Size | None) -> dict[str, Any]:
    """What an application has to know; ``fixed`` is the size of the graph, or None if it is free.

    Returns:
        ``classes``, ``palette`` (RGB), ``outputs``, ``chosen_output`` (what the config takes for
        the prediction), ``resize`` (``scale``, width and height, and ``keep_ratio`` of the test
        pipeline, or null), ``slide`` (``window`` and ``stride``, height and width, of a sliding
        window, or null), ``padding`` (the pixel that the network sees as zero), ``threshold`` (of a
        binary model with one channel, or null), ``image`` (the graph's input in words), ``loading``
        (the transforms of the test pipeline that load images) and where the model comes from.
    """
    model = deployed.model
    resize = next((t for t in cfg.test_pipeline if t['type'] == 'Resize' and 'scale' in t), None)
    slide = None
    if model.test_cfg.mode == 'slide':
        window = fixed or model.test_cfg.crop_size
        stride = [min(pair) for pair in zip(model.test_cfg.stride, window, strict=True)]
        slide = dict(window=window, stride=stride)
    mean = (reverse_colours(deployed.mean) if deployed.takes_bgr else deployed.mean).flatten()
    further = f' and {deployed.channels - 3} further channels' if deployed.channels > 3 else ''
    colours = 'RGB' if deployed.channels >= 3 else 'grey'
    binary = model.decode_head.out_channels == 1
    return dict(
        classes=model.dataset_meta['classes'],
        palette=[[int(value) for value in color] for color in model.dataset_meta['palette']],
        outputs=deployed.outputs,
        chosen_output=getattr(model, 'chosen_output', 'prediction'),
        resize=resize and dict(scale=resize.scale, keep_ratio=resize.get('keep_ratio', False)),
        slide=slide,
        padding=mean.tolist(),
        threshold=model.decode_head.threshold if binary else None,
        image=f'{colours}{further}, float32, 0 to 255, (N, {deployed.channels}, H, W)',
        loading=[step for step in cfg.test_pipeline if step['type'] in LOADING],
        config=Path(cfg.filename).stem,
        mmseg_coop=__version__,
        torch=torch.__version__,
    )


def _free_sides(dynamic: bool) -> tuple[dict[int, Any]] | None:
    """Dimensions of the image that torch.export leaves open, as far as the model allows."""
    return (dict.fromkeys((2, 3), torch.export.Dim.AUTO),) if dynamic else None


def _write_onnx(
    deployed: DeployedModel,
    example: Tensor,
    file: Path,
    exporter: str,
    dynamic: bool,
    opset: int | None,
) -> None:
    """Write the ONNX file, by tracing or through torch.export."""
    options: dict[str, Any]
    if exporter == 'dynamo':
        options = dict(
            dynamo=True,
            dynamic_shapes=_free_sides(dynamic),
            external_data=False,  # one file holds all
            verbose=False,
        )
    else:
        axes = {0: 'batch', 2: 'height', 3: 'width'}
        names = ('image', *deployed.outputs) if dynamic else ()
        options = dict(dynamic_axes=dict.fromkeys(names, axes))
        if 'dynamo' in _parameters(torch.onnx.export):  # torch 2.1 knows no other exporter here
            options['dynamo'] = False
    with warnings.catch_warnings():
        if exporter == 'trace':
            # It says that it is old, and where Python decides on a size. What it decides is checked
            # at a size that was not traced.
            warnings.simplefilter('ignore')
        torch.onnx.export(
            deployed,
            (example,),
            str(file),
            input_names=['image'],
            output_names=deployed.outputs,
            opset_version=opset or (18 if exporter == 'dynamo' else 17),
            **options,
        )


def _write_program(
    deployed: DeployedModel, example: Tensor, file: Path, dynamic: bool, values: dict[str, Any]
) -> list[Size]:
    """Write the program of ``torch.export``, with the metadata as its extra file metadata.json.

    Returns:
        The smallest height and width that it takes, or nothing if its size is fixed.
    """
    program = torch.export.export(deployed, (example,), dynamic_shapes=_free_sides(dynamic))
    torch.export.save(program, file, extra_files={'metadata.json': json.dumps(values)})
    if not dynamic:
        return []
    image = next(node.meta['val'] for node in program.graph.nodes if node.name == 'image')
    sides = [getattr(side, 'node', None) for side in image.shape[2:]]
    bounds: list[Any] = [side and program.range_constraints.get(side.expr) for side in sides]
    if any(bound is None or bound.upper < 2**20 for bound in bounds):
        limits = ' x '.join(f'{bound.lower} to {bound.upper}' if bound else '?' for bound in bounds)
        raise InputError(
            f'torch.export frees the sides up to {limits} only, because a map of the model has one '
            'pixel a side or the like; give a greater --size, or leave --dynamic out.'
        )
    height, width = (int(bound.lower) for bound in bounds)
    print(f'torch.export takes images of {height} x {width} or more')
    return [(height, width)]


def _add_metadata(file: Path, values: dict[str, Any]) -> None:
    """Write the metadata into an ONNX file, each value as JSON, and check that it is valid."""
    import onnx

    content = onnx.load(str(file))
    onnx.helper.set_model_props(content, {k: json.dumps(value) for k, value in values.items()})
    onnx.checker.check_model(content)
    onnx.save(content, str(file))


def onnx_runner(file: Path, outputs: Sequence[str]) -> Run:
    """Run an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    return lambda image: session.run(list(outputs), {'image': image})


def _program_runner(file: Path) -> Run:
    module = torch.export.load(file).module()
    return lambda image: [logits.numpy() for logits in module(torch.from_numpy(image))]


def _check(
    run: Run, deployed: DeployedModel, shape: tuple[int, ...], tolerance: float, what: str
) -> None:
    """Compare an exported model with PyTorch on random images, preprocessing included."""
    rgb = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    bgr = [reverse_colours(image) for image in torch.from_numpy(rgb)]
    expected = deployed.logits(deployed.model.data_preprocessor(dict(inputs=bgr))['inputs'])
    where = f'{what}, {" x ".join(map(str, shape))}'
    try:
        found = run(rgb.astype(np.float32))
    except Exception as error:  # onnxruntime's and torch's own types, which share no base
        reason = ' '.join(str(error).split())[:300]
        raise CoopError(f'{where}: the exported model does not run: {reason}') from error
    for name, logits, reference in zip(deployed.outputs, found, expected, strict=True):
        if logits.shape != reference.shape:
            sizes = f'{logits.shape}, not {tuple(reference.shape)}'
            raise CoopError(f'{where}: {name} has shape {sizes}.')
        difference = np.abs(logits - reference.numpy()).max()
        relative = float(difference / max(1.0, reference.abs().max()))
        print(f'{where}: {name} differs from PyTorch by {relative:.1e}', flush=True)
        if not relative <= tolerance:  # also catches what is not a number
            raise CoopError(
                f'{where}: {name} differs from PyTorch by {relative:.1e}, allowed are '
                f'{tolerance:.1e} (--tolerance); nothing was written.'
            )
