from __future__ import annotations

import pytest
import torch
from mmengine.model.utils import _BatchNormXd
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import spectral_norm

from mmseg_coop.apis.folding import fold_batch_norms

IMAGE = torch.rand(2, 4, 6, 6)


class Scaled(nn.BatchNorm2d):
    """A batch norm that does more than its name says."""

    def forward(self, x):
        return 2 * super().forward(x)


class Own(nn.Module):
    """Runs a function of itself and of its input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.function(self, x)


def conv(**options):
    return nn.Conv2d(4, 4, 3, padding=1, **options)


def norm(**options):
    return nn.BatchNorm2d(4, **options)


def pair(function):
    return Own(function, conv=conv(), norm=norm())


def hooked(part):
    model = nn.Sequential(conv(), norm())
    model[part].register_forward_hook(lambda module, args, result: 2 * result)
    return model


def shared(make):
    """One convolution or batch norm in two places."""
    part = make()
    convs = [part, part] if make is conv else [conv(), conv()]
    norms = [part, part] if make is norm else [norm(), norm()]
    return nn.Sequential(convs[0], norms[0], convs[1], norms[1])


def tied():
    """A convolution with the weight of one that does not run."""
    model = Own(lambda m, x: m.norm(m.conv(x)), conv=conv(bias=False), norm=norm())
    model.other = conv(bias=False)
    model.other.weight = model.conv.weight
    return model


def restored(model, x):
    """The batch norm runs behind the convolution, and is read again by a function."""
    y = model.norm(model.conv(x))
    return nn.functional.batch_norm(y, model.norm.running_mean, model.norm.running_var)


#: Models, and how many batch norms have to be left of them.
MODELS = dict(
    plain=(lambda: nn.Sequential(conv(), norm(), nn.ReLU(inplace=True)), 0),
    no_bias=(lambda: nn.Sequential(conv(bias=False), norm()), 0),
    depthwise=(lambda: nn.Sequential(conv(groups=4), norm(), conv(padding_mode='reflect')), 0),
    not_affine=(lambda: nn.Sequential(conv(), norm(affine=False)), 0),
    dropout_between=(lambda: nn.Sequential(conv(), nn.Dropout(), nn.Identity(), norm()), 0),
    one_dimension=(
        lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)), 0,
    ),
    reverted=(lambda: nn.Sequential(conv(), _BatchNormXd(4)), 0),
    synchronised=(lambda: nn.Sequential(conv(), nn.SyncBatchNorm(4)), 0),
    of_timm=(lambda: nn.Sequential(conv(), BatchNormAct2d(4, act_layer=nn.SiLU)), 0),
    other_order=(lambda: Own(lambda m, x: m.norm(m.conv(x)), norm=norm(), conv=conv()), 0),
    two_names=(lambda: Own(lambda m, x: m.b(m.conv(x)), conv=conv(), a=(n := norm()), b=n), 0),
    residual=(
        lambda: Own(
            lambda m, x: m.bn1(m.conv1(x)) + m.bn2(m.conv2(x)),
            conv1=conv(), conv2=conv(), bn1=norm(), bn2=norm(),
        ), 0,
    ),
    pre_activation=(lambda: nn.Sequential(norm(), nn.ReLU(), conv()), 1),
    activation_between=(lambda: nn.Sequential(conv(), nn.ReLU(inplace=True), norm()), 1),
    reversed=(lambda: pair(lambda m, x: m.conv(m.norm(x))), 1),
    added=(lambda: pair(lambda m, x: (y := m.conv(x)) + m.norm(y)), 1),
    concatenated=(lambda: pair(lambda m, x: torch.cat([(y := m.conv(x)), m.norm(y)], 1)), 1),
    returned=(lambda: pair(lambda m, x: ((y := m.conv(x)), dict(normed=[m.norm(y)]))), 1),
    viewed=(lambda: pair(lambda m, x: m.norm((y := m.conv(x)).transpose(2, 3)) * y.mean()), 1),
    changed=(lambda: pair(lambda m, x: m.norm(m.conv(x).add_(1))), 1),
    twice=(lambda: pair(lambda m, x: m.norm(m.norm(m.conv(x)))), 1),
    conv_again=(lambda: pair(lambda m, x: m.conv(m.norm(m.conv(x)))), 1),
    weight_read=(lambda: pair(lambda m, x: m.norm(m.conv(x)) * m.conv.weight.mean()), 1),
    statistics_read=(lambda: pair(restored), 1),
    shared_conv=(lambda: shared(conv), 2),
    shared_norm=(lambda: shared(norm), 1),
    tied_weights=(tied, 1),
    spectral=(lambda: nn.Sequential(spectral_norm(conv()), norm()), 1),
    weight_norm=(lambda: nn.Sequential(nn.utils.weight_norm(conv()), norm()), 1),
    hooked_conv=(lambda: hooked(0), 1),
    hooked_norm=(lambda: hooked(1), 1),
    no_statistics=(lambda: nn.Sequential(conv(), norm(track_running_stats=False)), 1),
    own_norm=(lambda: nn.Sequential(conv(), Scaled(4)), 1),
    transposed=(lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3, padding=1), norm()), 1),
    linear=(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.BatchNorm1d(4)), 1,
    ),
)  # fmt: skip


def randomize(model):
    """Give batch norms statistics and weights that change something."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for name, low, high in (
                *(('running_mean', -1, 1), ('running_var', 0.5, 2)),
                *(('weight', 0.5, 1.5), ('bias', -1, 1)),
            ):
                values = getattr(module, name)
                if values is not None:
                    values.data.uniform_(low, high)


@pytest.mark.parametrize(('make', 'left'), MODELS.values(), ids=MODELS)
def test_what_can_be_folded_is_folded_and_all_else_is_kept(make, left):
    model = make().eval()
    randomize(model)
    expected = model(IMAGE)
    torch.testing.assert_close(fold_batch_norms(model, lambda: model(IMAGE)), expected)
    assert sum(isinstance(module, _BatchNorm) for module in model.modules()) == left
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(IMAGE), expected, rtol=1e-5, atol=1e-5)
