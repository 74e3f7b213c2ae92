from __future__ import annotations

import pytest

TOOL = 'tools/misc/check_config_names.py'
NAME = 'cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
BASE = """
crop_size = (513, 513)
model = dict(data_preprocessor=dict(size=crop_size))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=88183)
train_dataloader = dict(
    batch_size=6,
    dataset=dict(
        type='PascalVOCDataset', pipeline=[dict(type='RandomCrop', crop_size=crop_size)]))
"""


@pytest.fixture
def check(tmp_path, tool):
    """Returns a function that writes one config, runs the tool and gives its code and output."""

    def run(name: str = NAME, lines: str = '') -> tuple[int, str, str]:
        (tmp_path / '_base_').mkdir()
        (tmp_path / '_base_/experiment.py').write_text(BASE)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"_base_ = '../_base_/experiment.py'\n{lines}\n")
        done = tool(TOOL, tmp_path)
        return done.returncode, done.stdout, done.stderr

    return run


def test_accepts_a_true_name(check):
    assert check() == (0, '1 configs are what their names say\n', '')


@pytest.mark.parametrize(
    ('name', 'lines', 'field', 'received'),
    [
        (NAME.replace('-d16', ''), '', 'name', 'does not follow'),
        (NAME.replace('1xb6', 'b6'), '', 'name', 'does not follow'),
        (NAME.replace('513x513', '513'), '', 'name', 'does not follow'),
        (NAME.replace('/cross-coop', '/danet'), '', 'method', "'danet' begins with none of"),
        (NAME.replace('cross_coop/', 'dpanet/'), '', 'folder', "'cross_coop'"),
        (NAME.replace('voc12aug', 'ade20k'), '', 'dataset', "'ade20k' is none of"),
        (NAME.replace('voc12aug', 'cityscapes'), '', 'dataset', 'PascalVOCDataset'),
        (NAME, 'train_dataloader = dict(batch_size=8)', 'batch', 'says 6, the config has 8'),
        (NAME, 'train_cfg = dict(max_iters=80000)', 'iterations', 'says 88k, the config has 80k'),
        (NAME, 'train_cfg = dict(max_iters=880)', 'iterations', 'says 88k, the config has 880'),
        (NAME, 'crop_size = (512, 513)', 'crop', 'the config has 512x513, 513x513'),
        (NAME, 'model = dict(data_preprocessor=dict(size=480))', 'crop', '480x480, 513x513'),
        (NAME, 'model = undefined', 'content', 'NameError'),
    ],
)
def test_names_file_and_field_of_a_disagreement(check, name, lines, field, received):
    code, out, err = check(name, lines)
    assert (code, out) == (1, '')
    assert err.startswith(f'{name}: {field}: ')
    assert received in err
    assert len(err.splitlines()) == 1
