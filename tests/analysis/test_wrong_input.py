from __future__ import annotations

import re

import pytest

from tests.conftest import MINI

#: Files that are there before the tools run.
FILES = {
    'old.png': 'mine',
    'old.json': 'mine',
    'full/top.csv': 'mine',
    'full/000000_scene_0.png': 'mine',
    'broken.json': '{"loss": 1}\n',
    'circle/file.txt': '',
    'no_size.py': 'crop_size = None\nmodel = dict(data_preprocessor=dict(size=None))\n',
}
CIRCLE = ' '.join(
    f'test_dataloader.dataset.{key}'
    for key in ('data_root=.', 'data_prefix.img_path=circle', 'data_prefix.seg_map_path=circle')
)
CHECK = 'check_dataset CONFIG --splits test'
REDUCED = 'test_dataloader.dataset.pipeline.1.reduce_zero_label=True'
OTHER = 'test_evaluator.type=CityscapesMetric test_evaluator.output_dir=out'
COMPARE = 'compare_predictions --out out --model'
MIXED = 'PLAIN_CONFIG CHECKPOINT'
ANALYSIS = [
    (
        'confusion_matrix PAIR --out full',
        1,
        r"'full/top.csv' exists; name another place, or add --force",
    ),
    ('confusion_matrix PAIR --max-images 0', 2, '--max-images: has to be at least 1, not 0'),
    (f'confusion_matrix {MIXED}', 1, 'checkpoint .* does not fit the config'),
    ('confusion_matrix CONFIG gone.pth', 1, "checkpoint 'gone.pth' does not exist"),
    ('confusion_matrix PAIR --split val', 1, 'data root .* does not exist'),
    ('confusion_matrix PAIR --device gpu', 1, "--device 'gpu' cannot be used here: "),
    (
        f'confusion_matrix PAIR --cfg-options {OTHER}',
        1,
        r"test_evaluator is \['CityscapesMetric'\]",
    ),
    ('analyze_cooperation PLAIN', 1, 'has no networks that could cooperate'),
    (f'{COMPARE} a.py --frames a', 2, "CHECKPOINT .*, not 'a.py'"),
    (f'{COMPARE} a b --most-different 0', 2, 'at least 1, not 0'),
    (f'{COMPARE} a b', 2, 'one of .*--frames --most-different is req'),
    (f'{COMPARE} PAIR --frames scene_00', 1, "no frame 'scene_00'; .* Did you mean scene_0"),
    (f'{COMPARE} PAIR top,left --frames a', 1, "output 'left' is unknown; the model has \\['top'"),
    (f'{COMPARE} PAIR --between top 3:top --frames a', 1, "a number from 1 to 1, not '3:top'"),
    (f'{COMPARE} PAIR --between top left --frames a', 1, "output 'left' is unknown"),
    (f'{COMPARE} PLAIN --most-different 1', 1, 'needs two networks; add another --model'),
    (f'{COMPARE} {MIXED} --frames a', 1, 'does not fit the config'),
    ('compare_predictions --out full --model PAIR --frames a', 1, 'holds files; add --force'),
    ('plot_logs gone', 1, "'gone' does not exist"),
    ('plot_logs circle', 1, 'has no vis_data/scalars.json'),
    ('plot_logs broken.json', 1, 'line 1 of .* is no scalars'),
    ('plot_logs a b --names one', 2, '--names takes one name a run: 2, not 1'),
    ('plot_logs circle --out old.png', 1, "'old.png' exists; name another place"),
    ('plot_logs circle --smooth 0', 2, '--smooth: has to be at least 1, not 0'),
    ('plot_logs circle --out curves.jpg', 2, "--out: takes a .png file, not 'curves.jpg'"),
    ('get_flops CONFIG --size 0x65', 2, "takes HEIGHTxWIDTH such as 513x513, not '0x65'"),
    ('get_flops CONFIG --json old.json', 1, "'old.json' exists; name another place"),
    ('get_flops no_size.py', 1, 'it has neither crop_size nor model.data_preprocessor.size'),
    ('benchmark CONFIG --threads -1', 2, '--threads: has to be at least 1, not -1'),
    ('benchmark gone.py', 1, "config 'gone.py' does not exist"),
    ('benchmark CONFIG --growth old.png', 1, "'old.png' exists; name another place"),
    (
        'benchmark CONFIG --size 33x33 --batch-size 1 --repeats 1',
        1,
        'cannot be trained with a batch of 1',
    ),
    ('attention_cost --sizes 96x96 96x0', 2, "takes HEIGHTxWIDTH .*, not '96x0'"),
    ('attention_cost --channels 7', 2, '--channels: has to be at least 8, not 7'),
    ('attention_cost --only SPP', 1, "--only names 'SPP'; choose among SPA, SPA-conv"),
    ('attention_cost --device cuda:99', 1, "--device 'cuda:99' cannot be used here"),
    ('browse_dataset CONFIG --split test --out full', 1, "scene_0.png' exists; name another place"),
    ('browse_dataset CONFIG --split test --start 4', 1, 'test split has 4 images, 0 to 3.$'),
    ('browse_dataset CONFIG --number 0', 2, '--number: has to be at least 1, not 0'),
    (f'{CHECK} --json old.json', 1, "'old.json' exists; name another place"),
    (f'{CHECK} --workers 0', 2, '--workers: has to be at least 1, not 0'),
    (f'{CHECK} --cfg-options model.decode_head.num_classes=12', 1, 'num_classes is 12.* is 11'),
    (f'{CHECK} --cfg-options test_dataloader.dataset.data_root=gone', 1, "data root 'gone'"),
    (f'{CHECK} --cfg-options {REDUCED}', 1, 'reduce_zero_label is True in LoadSegAnn.* but False'),
    (f'{CHECK} --cfg-options {CIRCLE}', 1, 'leads back to a folder above it'),
    ('paper_tables gone', 1, "work dir 'gone' does not exist"),
    ('paper_tables --csv old.png', 1, "'old.png' exists; name another place"),
    ('paper_tables --png old.png', 1, "'old.png' exists; name another place"),
    ('paper_tables --png a --csv a', 2, '--csv and --png name the same file'),
    ('paper_tables --server dpanet=70', 1, "--server takes CONFIG=MIOU .*, not 'dpanet=70'"),
]
MISC = [
    ('print_config gone.py', 1, "config 'gone.py' does not exist"),
    ('print_config CONFIG --key model.head', 1, "model.head: 'model' has no 'head', only type,"),
    ('print_config CONFIG --key model.type.x', 1, "'model.type' is the value 'CrossCoopEncoderDec"),
    ('print_config CONFIG --out config.txt', 2, "--out: takes a .py .* file, not 'config.txt'"),
    ('print_config CONFIG --out a.py --key model', 2, 'leave out --key and --diff'),
    ('print_config CONFIG --out old.json', 1, "'old.json' exists; name another place"),
    ('check_config_names circle', 2, 'holds no configs: name a folder that does'),
]


def files_in(folder):
    return {path: path.read_text() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize(
    ('words', 'code', 'message'),
    [
        pytest.param(f'tools/{folder}/{words}', code, message, id=words)
        for folder, cases in (('analysis_tools', ANALYSIS), ('misc', MISC))
        for words, code, message in cases
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(
    words, code, message, evaluated, tool, tmp_path
):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / 'no_size.py').write_text(f'_base_ = {str(MINI)!r}\n{FILES["no_size.py"]}')
    (tmp_path / 'circle/again').symlink_to(tmp_path / 'circle')
    before = files_in(tmp_path)
    meanings = dict(
        PAIR=evaluated.pair,
        PLAIN=evaluated.plain,
        CONFIG=evaluated.pair[:1],
        CHECKPOINT=evaluated.pair[1:],
        PLAIN_CONFIG=evaluated.plain[:1],
    )
    path, *rest = [part for word in words.split() for part in meanings.get(word, [word])]
    done = tool(f'{path}.py', *rest, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    line = done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr
    assert line.startswith('error: ') if code == 1 else ': error: ' in line
    assert re.search(message, line), line
    assert files_in(tmp_path) == before
