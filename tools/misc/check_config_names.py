"""Check that the name of every config says what the config holds.

A config lies in its method's folder and is called
``{method}_{networks}-{details}_{GPUs}xb{batch}-{iterations}_{dataset}-{crop}.py``, such as
``cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py``. What the name says of batch size,
iterations, dataset and crop has to be true of the config as resolved. Files under ``_base_`` are
parts of configs and need no such name.

Exits with 1 and one line per disagreement, naming the file and the field.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmseg_coop_cli import Parser, program

ROOT = Path(__file__).resolve().parents[2]
GRAMMAR = '{method}_{networks}-{details}_{GPUs}xb{batch}-{iterations}_{dataset}-{crop}.py'
WORDS = r'[a-z0-9]+(?:-[a-z0-9]+)*'
NAME = re.compile(
    rf'(?P<method>{WORDS})_{WORDS}-d(?:4|8|16|32)(?:-{WORDS})?'
    r'_(?P<gpus>[1-9]\d*)xb(?P<batch>[1-9]\d*)-(?P<iterations>[1-9]\d*k?)'
    r'_(?P<dataset>[a-z0-9]+)-(?P<crop>[1-9]\d*x[1-9]\d*)'
)
#: The folder of each method, by how the method's name begins.
FOLDERS = {
    'cross-coop': 'cross_coop',
    'coop': 'cross_coop',
    'mutual': 'cross_coop',
    'distill': 'cross_coop',
    'deeplabv3plus': 'deeplabv3plus',
    'dpanet': 'dpanet',
}
#: The dataset class behind each name of a dataset.
DATASETS = {
    'camvid': 'CamVidDataset',
    'cityscapes': 'CityscapesDataset',
    'mfnet': 'MFNetDataset',
    'nyuv2': 'NYUv2Dataset',
    'voc12aug': 'PascalVOCDataset',
}


def find_all(node: object, key: str) -> Iterator[object]:
    """Yield every value that ``key`` has anywhere inside nested dictionaries and lists."""
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from find_all(child, key)


def say_iterations(iterations: int) -> str:
    """Write a number of iterations as the names do: in thousands, rounded, from 1000 on."""
    return f'{round(iterations / 1000)}k' if iterations >= 1000 else str(iterations)


def say_size(size: object) -> str:
    """Write a crop as the names do, height first."""
    return 'x'.join(map(str, size)) if isinstance(size, (list, tuple)) else f'{size}x{size}'


def find_crops(cfg: Any) -> set[str]:
    """Return the sizes of all training crops, and the size to which the model pads them."""
    sizes = [*find_all(cfg.get('train_dataloader'), 'crop_size'), cfg.get('crop_size')]
    sizes += find_all(cfg.get('model', {}).get('data_preprocessor'), 'size')
    return {say_size(size) for size in sizes if size is not None}


def check_name(path: Path) -> Iterator[str]:
    """Yield what is wrong with the name of the config at ``path``."""
    name = NAME.fullmatch(path.stem)
    if name is None:
        yield f'name: does not follow {GRAMMAR}'
        return
    method = name['method']
    folders = [at for start, at in FOLDERS.items() if f'{method}-'.startswith(f'{start}-')]
    if not folders:
        yield f'method: {method!r} begins with none of {", ".join(FOLDERS)}'
    elif path.parent.name != folders[0]:
        yield f'folder: {path.parent.name!r}, but {method!r} belongs in {folders[0]!r}'
    if name['dataset'] not in DATASETS:
        yield f'dataset: {name["dataset"]!r} is none of {", ".join(DATASETS)}'
    else:
        yield from check_content(path, name)


def check_content(path: Path, name: re.Match[str]) -> Iterator[str]:
    """Yield in what the config at ``path``, resolved, disagrees with its name."""
    from mmengine.config import Config  # slow to import, and --help does without

    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # a config is code: anything may be wrong with it
        yield f'content: cannot be read: {type(error).__name__}: {" ".join(str(error).split())}'
        return
    data = cfg.get('train_dataloader', {})
    iterations = cfg.get('train_cfg', {}).get('max_iters')
    found = {
        'batch': {str(data.get('batch_size'))},
        'iterations': {say_iterations(iterations) if iterations else 'none'},
        'crop': find_crops(cfg) or {'none'},
    }
    kinds = list(find_all(data.get('dataset'), 'type'))
    if DATASETS[name['dataset']] not in kinds:
        found['dataset'] = {str(kinds[0]) if kinds else 'none'}
    for field, values in found.items():
        said = name[field]
        if values != {said}:
            yield f'{field}: the name says {said}, the config has {", ".join(sorted(values))}'


def main(argv: Sequence[str] | None = None) -> None:
    """Check all configs of a folder."""
    parser = Parser(__doc__)
    parser.add_argument(
        'folder', nargs='?', type=Path, default=ROOT / 'configs', help='default: %(default)s'
    )
    folder = parser.parse_args(argv).folder
    if not folder.is_dir():
        parser.error(f'{folder} is not a folder: name one that holds configs')
    paths = [
        path
        for path in sorted(folder.rglob('*.py'))
        if '_base_' not in path.relative_to(folder).parts
    ]
    if not paths:
        parser.error(f'{folder} holds no configs: name a folder that does')
    problems = [
        f'{path.relative_to(folder)}: {text}' for path in paths for text in check_name(path)
    ]
    if problems:
        print(*problems, sep='\n', file=sys.stderr)
        sys.exit(1)
    print(f'{len(paths)} configs are what their names say')


if __name__ == '__main__':
    program(main)
