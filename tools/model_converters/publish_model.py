"""Make a file to hand on from a training checkpoint.

Keeps the weights and the classes, drops the optimizer, the schedulers, the records and the config
with its paths. The file's name ends in the first 8 digits of its SHA-256, so that a damaged
download shows. Nothing that lies in the checkpoint is run.

    publish_model.py work_dirs/run/best_mIoU_iter_88000.pth cross-coop.pth
    -> cross-coop-1a2b3c4d.pth

Either file is for load_from, init_cfg, test.py and, where mmseg_coop is imported, mmseg's
inferencers; a .pth file loads with torch.load(..., weights_only=True), too. A .safetensors file has
the classes as JSON under "dataset_meta" of its metadata.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Publish."""
    parser = Parser(__doc__)
    parser.share('source', help='checkpoint of a training')
    parser.share('destination', help='NAME.pth or NAME.safetensors')
    parser.share('--force')
    args = parser.parse_args(argv)

    from mmseg_coop.apis.convert import publish_checkpoint

    publish_checkpoint(**vars(args))


if __name__ == '__main__':
    program(main)
