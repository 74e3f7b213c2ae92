"""Export a trained model as one self-contained ONNX file, checked against PyTorch first.

The graph takes `image`, float32 RGB of 0 to 255, (N, 3, H, W), and normalises it itself. It returns
one array of logits an output, (N, classes, H, W), under the output's name: every network's and
`ensemble`, or `prediction` for a model with a single output. Classes, palette and the resizing of
the test pipeline lie in the file's metadata; onnx_inference.py needs nothing else.

Sizes are fixed unless --dynamic is given. Of a model that is evaluated with a sliding window the
graph is one window; its metadata say how onnx_inference.py has to move it.
"""

from __future__ import annotations

import argparse
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
from mmengine.config import Config, DictAction
from mmseg.models import BaseSegmentor
from torch import Tensor, nn

from mmseg_coop import __version__
from mmseg_coop.apis.model import load_model
from mmseg_coop.config import image_size, load_config
from mmseg_coop_cli import short_errors

Size = tuple[int, int]
#: Takes images (N, 3, H, W), float32 RGB of 0 to 255, and returns the logits in the outputs' order.
Run = Callable[[np.ndarray], Sequence[np.ndarray]]
#: The smallest side that --size takes.
SMALLEST_SIDE = 32


def size(text: str) -> Size:
    """Read HEIGHTxWIDTH."""
    try:
        height, width = (int(side) for side in text.split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'takes HEIGHTxWIDTH such as 513x513, not {text!r}'
        ) from None
    if min(height, width) < SMALLEST_SIDE:
        raise argparse.ArgumentTypeError(f'takes sides of at least {SMALLEST_SIDE}, not {text!r}')
    return height, width


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE.onnx',
        help='file to write; default: beside the checkpoint, under its name',
    )
    parser.add_argument(
        '--size', type=size, metavar='HxW', help='size of the image; default: that of the training'
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='take images of any size (and batches of any size with the trace exporter)',
    )
    parser.add_argument(
        '--outputs', nargs='+', metavar='NAME', help='outputs to export; default: all'
    )
    parser.add_argument(
        '--exporter',
        choices=['trace', 'dynamo'],
        default='trace',
        help="torch's exporter: by tracing, or through torch.export (torch >= 2.5); default: trace",
    )
    parser.add_argument(
        '--opset',
        type=int,
        metavar='N',
        help='version of the ONNX operators; default: 17 by tracing, 18 through torch.export',
    )
    parser.add_argument(
        '--program',
        action='store_true',
        help='also write what torch.export makes of the model, as FILE.pt2 (torch >= 2.4)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-4,
        help='largest difference to PyTorch, relative to the largest logit (or to 1, if the logits '
        'are smaller); default: 1e-4',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace files that exist')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values of the config',
    )
    return parser.parse_args()


class DeployedModel(nn.Module):
    """A segmentor with its normalisation, from RGB images to the logits of its outputs.

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
        self.register_buffer('mean', torch.zeros(3, 1, 1) if mean is None else mean.clone())
        self.register_buffer('std', torch.ones(3, 1, 1) if std is None else std.clone())
        cfg = model.cfg.model.get('data_preprocessor') or {}
        # Files are loaded as BGR: without a conversion that is what the networks have learned on.
        self.takes_bgr = not (cfg.get('bgr_to_rgb') or cfg.get('rgb_to_bgr'))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run.

        Args:
            image: RGB of 0 to 255, ``(N, 3, H, W)``.

        Returns:
            Logits of every output, ``(N, C, H, W)``.
        """
        x = (image.flip(1) if self.takes_bgr else image) - self.mean
        logits = self.model.encode_decode(x / self.std, [dict(img_shape=image.shape[2:])])
        split = split_outputs(self.model, logits)
        return tuple(split[name] for name in self.outputs)


def split_outputs(model: BaseSegmentor, logits: Tensor) -> dict[str, Tensor]:
    """Outputs of a model by name, from what its ``encode_decode`` returns."""
    if hasattr(model, 'split_outputs'):
        return model.split_outputs(logits)
    return dict(prediction=logits)


def choose_outputs(model: BaseSegmentor, wanted: Sequence[str] | None) -> list[str]:
    """Names of the outputs to export.

    Args:
        model: The segmentor.
        wanted: Names from the command line, or None for all.

    Returns:
        The names in the order of the model.

    Raises:
        ValueError: There is no such output.
    """
    available = list(getattr(model, 'output_names', ['prediction']))
    for name in wanted or ():
        if name not in available:
            raise ValueError(f'output {name!r} is unknown; the model has {available}.')
    return [name for name in available if wanted is None or name in wanted]


def metadata(
    cfg: Config, model: BaseSegmentor, deployed: DeployedModel, fixed: Size | None
) -> dict[str, Any]:
    """What an application has to know.

    Args:
        cfg: Config.
        model: The segmentor.
        deployed: What is exported.
        fixed: Height and width of the graph, or None if they are free.

    Returns:
        ``classes``, ``palette`` (RGB), ``outputs``, ``chosen_output`` (what the config takes for
        the prediction), ``resize`` (``scale``, width and height, and ``keep_ratio`` of the test
        pipeline, or null), ``slide`` (``window`` and ``stride``, height and width, of a sliding
        window, or null), ``padding`` (RGB that the network sees as zero), ``threshold`` (of a
        binary model with one channel, or null) and where the model comes from.
    """
    resize = next((t for t in cfg.test_pipeline if t['type'] == 'Resize' and 'scale' in t), None)
    slide = None
    if model.test_cfg.mode == 'slide':
        window = fixed or model.test_cfg.crop_size
        stride = [min(pair) for pair in zip(model.test_cfg.stride, window, strict=True)]
        slide = dict(window=window, stride=stride)
    mean = deployed.mean.flatten().tolist()
    binary = model.decode_head.out_channels == 1
    return dict(
        classes=model.dataset_meta['classes'],
        palette=[[int(value) for value in color] for color in model.dataset_meta['palette']],
        outputs=deployed.outputs,
        chosen_output=getattr(model, 'chosen_output', 'prediction'),
        resize=resize and dict(scale=resize.scale, keep_ratio=resize.get('keep_ratio', False)),
        slide=slide,
        padding=mean[::-1] if deployed.takes_bgr else mean,
        threshold=model.decode_head.threshold if binary else None,
        image='RGB, float32, 0 to 255, (N, 3, H, W)',
        config=Path(cfg.filename).stem,
        mmseg_coop=__version__,
        torch=torch.__version__,
    )


def free_sides() -> tuple[dict[int, Any]]:
    """Dimensions of the image that torch.export leaves open, as far as the model allows."""
    return (dict.fromkeys((2, 3), torch.export.Dim.AUTO),)


def smallest_size(program: Any) -> Size:
    """Smallest height and width that a program of torch.export with free sides takes.

    Args:
        program: The program, whose input is ``image``.

    Raises:
        ValueError: Its sides are not free.
    """
    image = next(node.meta['val'] for node in program.graph.nodes if node.name == 'image')
    sides = [getattr(side, 'node', None) for side in image.shape[2:]]
    bounds = [program.range_constraints.get(side.expr) if side else None for side in sides]
    if any(bound is None or bound.upper < 2**20 for bound in bounds):
        limits = ' x '.join(f'{bound.lower} to {bound.upper}' if bound else '?' for bound in bounds)
        raise ValueError(
            f'torch.export frees the sides up to {limits} only, because a map of the model has one '
            'pixel a side or the like; give a greater --size, or leave --dynamic out.'
        )
    height, width = (int(bound.lower) for bound in bounds)
    return height, width


def export_onnx(
    deployed: DeployedModel, example: Tensor, file: Path, args: argparse.Namespace
) -> None:
    """Write the ONNX file.

    Args:
        deployed: What is exported.
        example: An image.
        file: Where to write.
        args: The command line.
    """
    common: dict[str, Any] = dict(input_names=['image'], output_names=deployed.outputs)
    if args.exporter == 'dynamo':
        torch.onnx.export(
            deployed,
            (example,),
            str(file),
            dynamo=True,
            dynamic_shapes=free_sides() if args.dynamic else None,
            opset_version=args.opset or 18,
            external_data=False,  # one file holds all
            verbose=False,
            **common,
        )
        return
    axes = {0: 'batch', 2: 'height', 3: 'width'}
    if 'dynamo' in _parameters(torch.onnx.export):  # torch 2.1 knows no other exporter here
        common['dynamo'] = False
    with warnings.catch_warnings():
        # The old exporter says that it is old, and where Python decides on a size. What it decides
        # is checked below, at a size that was not traced.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            deployed,
            (example,),
            str(file),
            dynamic_axes=dict.fromkeys(('image', *deployed.outputs), axes)
            if args.dynamic
            else None,
            opset_version=args.opset or 17,
            **common,
        )


def export_program(
    deployed: DeployedModel, example: Tensor, file: Path, dynamic: bool, values: dict[str, Any]
) -> Any:
    """Write the program of ``torch.export``, with the metadata as its extra file metadata.json."""
    program = torch.export.export(
        deployed, (example,), dynamic_shapes=free_sides() if dynamic else None
    )
    torch.export.save(program, file, extra_files={'metadata.json': json.dumps(values)})
    return program


def onnx_runner(file: Path, outputs: Sequence[str]) -> Run:
    """Run an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    return lambda image: session.run(list(outputs), {'image': image})


def program_runner(file: Path) -> Run:
    """Run a saved program."""
    module = torch.export.load(file).module()
    return lambda image: [logits.numpy() for logits in module(torch.from_numpy(image))]


@torch.no_grad()
def check(run: Run, model: BaseSegmentor, outputs: Sequence[str], shapes: list[Size], *, batch: int,
          tolerance: float, what: str) -> None:  # fmt: skip
    """Compare an exported model with PyTorch, preprocessing included.

    Args:
        run: The exported model.
        model: The segmentor.
        outputs: Names of its outputs, in order.
        shapes: Sizes of the random images to compare on.
        batch: Images at a time.
        tolerance: See the command line.
        what: Name of the format, for the message.

    Raises:
        ValueError: They differ, or the exported model does not run.
    """
    generator = np.random.default_rng(0)
    for height, width in shapes:
        rgb = generator.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)
        bgr = [torch.from_numpy(image[::-1].copy()) for image in rgb]
        x = model.data_preprocessor(dict(inputs=bgr))['inputs']
        expected = split_outputs(model, model.encode_decode(x, [dict(img_shape=x.shape[2:])]))
        where = f'{what}, {batch} x 3 x {height} x {width}'
        try:
            found = run(rgb.astype(np.float32))
        except Exception as error:  # onnxruntime's and torch's own types, which share no base
            reason = ' '.join(str(error).split())[:300]
            raise ValueError(f'{where}: the exported model does not run: {reason}') from error
        for name, logits in zip(outputs, found, strict=True):
            reference = expected[name].numpy()
            if logits.shape != reference.shape:
                raise ValueError(
                    f'{where}: {name} has shape {logits.shape}, not {reference.shape}.'
                )
            difference = np.abs(logits - reference).max()
            relative = float(difference / max(1.0, np.abs(reference).max()))
            print(f'{where}: {name} differs from PyTorch by {relative:.1e}', flush=True)
            if not relative <= tolerance:  # also catches what is not a number
                raise ValueError(
                    f'{where}: {name} differs from PyTorch by {relative:.1e}, allowed are '
                    f'{tolerance:.1e} (--tolerance); nothing was written.'
                )


def require(args: argparse.Namespace) -> None:
    """Check that what the export needs is installed.

    Args:
        args: The command line.

    Raises:
        ValueError: Something is missing, or --opset is none that the exporter writes.
    """
    packages = ['onnx', 'onnxruntime'] + ['onnxscript'] * (args.exporter == 'dynamo')
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f'the export needs {" and ".join(missing)}: pip install {" ".join(missing)}'
        )
    if args.exporter == 'dynamo' and 'external_data' not in _parameters(torch.onnx.export):
        raise ValueError(
            f'--exporter dynamo needs torch >= 2.5, this is {torch.__version__}; use trace.'
        )
    if args.exporter == 'dynamo':
        low, high = 18, 23
    else:  # torch 2.1 knows no other exporter here, and fewer opsets
        low, high = 11, 20 if 'dynamo' in _parameters(torch.onnx.export) else 17
    if args.opset is not None and not low <= args.opset <= high:
        raise ValueError(
            f'--opset {args.opset}: the {args.exporter} exporter writes {low} to {high}.'
        )
    if args.program and 'dynamic_shapes' not in _parameters(getattr(torch.export, 'export', None)):
        raise ValueError(f'--program needs torch >= 2.4, this is {torch.__version__}.')
    of_program = args.program or args.exporter == 'dynamo'
    if args.dynamic and of_program and not hasattr(torch.export.Dim, 'AUTO'):
        raise ValueError(
            f'--dynamic through torch.export needs torch >= 2.6, this is {torch.__version__}; '
            'leave --dynamic out, or use --exporter trace without --program.'
        )


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) if function else set()


def target_files(args: argparse.Namespace) -> list[Path]:
    """Files to write.

    Args:
        args: The command line.

    Returns:
        The ONNX file, and the program's if it is wanted.

    Raises:
        ValueError: A name has another ending.
        FileExistsError: A file exists.
    """
    beside = Path(args.checkpoint)
    if '://' in args.checkpoint:  # an address: there is no beside
        beside = Path(beside.name)
    out = args.out or beside.with_suffix('.onnx')
    if out.suffix != '.onnx':
        raise ValueError(f'--out {str(out)!r} has to end in .onnx.')
    files = [out, out.with_suffix('.pt2')] if args.program else [out]
    for file in files:
        if file.exists() and not args.overwrite:
            raise FileExistsError(f'{str(file)!r} exists; name another with --out, or --overwrite.')
    return files


def main() -> None:
    """Export, check and only then put the files in their place."""
    args = parse_args()
    with short_errors():
        require(args)
        files = target_files(args)
        cfg = load_config(args.config, cfg_options=args.cfg_options)
        height, width = args.size or image_size(cfg)
        model = load_model(cfg, args.checkpoint)
        outputs = choose_outputs(model, args.outputs)
    deployed = DeployedModel(model, outputs).eval().requires_grad_(False)
    values = metadata(cfg, model, deployed, None if args.dynamic else (height, width))
    shapes = [(height, width)]
    if args.dynamic:  # another size, odd and in other proportions
        shapes.append((max(SMALLEST_SIDE, height * 3 // 4) | 1, (width + 18) | 1))
    free_batch = args.dynamic and args.exporter == 'trace'
    example = torch.rand(2 if free_batch else 1, 3, height, width) * 255

    files[0].parent.mkdir(parents=True, exist_ok=True)
    # Written beside the target, checked, then renamed: no half or wrong file is ever left.
    with tempfile.TemporaryDirectory(dir=files[0].parent, prefix='.export-') as folder, \
            torch.no_grad():  # fmt: skip
        parts = [Path(folder, file.name) for file in files]
        export_onnx(deployed, example, parts[0], args)
        add_metadata(parts[0], values)
        runs = {'ONNX': (onnx_runner(parts[0], outputs), 2 if free_batch else 1, shapes)}
        if args.program:
            program = export_program(deployed, example[:1], parts[1], args.dynamic, values)
            if args.dynamic:
                with short_errors():
                    shapes = [*shapes, smallest_size(program)]
                print('torch.export takes images of {} x {} or more'.format(*shapes[-1]))
            runs['torch.export'] = (program_runner(parts[1]), 1, shapes)
        with short_errors():
            for what, (run, batch, sizes) in runs.items():
                check(run, model, outputs, sizes, batch=batch, tolerance=args.tolerance, what=what)
        del runs, run  # they keep the files open
        for part, file in zip(parts, files, strict=True):
            os.replace(part, file)
            print(f'{file}: {file.stat().st_size / 2**20:.1f} MiB, outputs {", ".join(outputs)}')


def add_metadata(file: Path, values: dict[str, Any]) -> None:
    """Write the metadata into an ONNX file, each value as JSON, and check that it is valid."""
    import onnx

    content = onnx.load(str(file))
    onnx.helper.set_model_props(content, {k: json.dumps(value) for k, value in values.items()})
    onnx.checker.check_model(content)
    onnx.save(content, str(file))


if __name__ == '__main__':
    main()
