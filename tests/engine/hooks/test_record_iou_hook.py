from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub

from mmseg_coop.engine.hooks.record_iou_hook import FILE_NAME, TABLE_KEY, RecordIoUHook


@pytest.fixture
def record(tmp_path):
    """Records a table in `tmp_path`."""
    runner = SimpleNamespace(
        work_dir=tmp_path, experiment_name='run_1', timestamp='1', seed=3, _train_loop=None
    )
    hub = MessageHub.get_instance('record')
    yield lambda **table: (
        hub.update_info(TABLE_KEY, table),
        RecordIoUHook().after_test_epoch(runner),
    )
    MessageHub._instance_dict.pop('record')


@pytest.mark.parametrize('before', ['', '{"split": "test"}\n'])
def test_a_line_is_added(before, record, tmp_path):
    (tmp_path / FILE_NAME).write_text(before)
    for output in ('top', 'bottom'):
        record(output=output)
    text = (tmp_path / FILE_NAME).read_text()
    assert text.startswith(before)
    lines = [json.loads(line) for line in text.removeprefix(before).splitlines()]
    assert lines == [
        dict(split='test', iteration=None, config='run', seed=3, output=output)
        for output in ('top', 'bottom')
    ]


def test_a_line_says_how_many_images_were_left_out(record, tmp_path):
    MessageHub.get_instance('record').update_scalar('test/images_left_out', 2.0)
    record(output='top')
    assert json.loads((tmp_path / FILE_NAME).read_text())['images_left_out'] == 2


def test_a_line_that_was_cut_short_stays_alone(record, tmp_path):
    (tmp_path / FILE_NAME).write_text('{"split": "te')
    record(output='top')
    cut, line = (tmp_path / FILE_NAME).read_text().splitlines()
    assert cut == '{"split": "te'
    assert json.loads(line)['output'] == 'top'
