"""The suites that the tests of models inherit: what holds whatever a model computes.

A test class states what is built and what goes in, and adds what the equations of its model say.
"""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from typing import ClassVar

import pytest
import torch
from mmengine.utils import digit_version
from mmseg.registry import MODELS
from torch.utils._pytree import tree_flatten, tree_map

from mmseg_coop.models.cooperation import run_in_step
from tests.conftest import labelled

HAS_DYNAMO_EXPORTER = 'dynamo' in inspect.signature(torch.onnx.export).parameters
NO_BATCH_STATISTICS = dict(type='GN', num_groups=1)


def tensors(tree):
    """All tensors of what a model takes or returns, in order."""
    return tree_flatten(tree)[0]


class ModelSuite:
    """What holds for every model."""

    #: Name in the registry.
    type = ''
    #: Arguments of a small model, and by name those in which its variants differ from it.
    arguments: ClassVar = {}
    variants: ClassVar = {'plain': {}}
    #: Heights and widths of what goes in: even, odd, not square, a pixel.
    sizes = ((12, 8), (9, 14), (3, 2), (1, 1))
    #: Arguments, and what the error about them says.
    refusals = ()
    #: Parameters without effect: a bias of the keys shifts all energies of a softmax alike.
    idle = ('spa.attention.key.bias',)

    def pytest_generate_tests(self, metafunc):
        """Run a test for everything that its class names under the plural of an argument."""
        for name in ('variant', 'size', 'refusal', 'deployed', 'compilation', 'site'):
            if name in metafunc.fixturenames:
                values = list(getattr(self, name if name == 'deployed' else f'{name}s'))
                # A refusal may hold a function, whose text differs between the suite's processes.
                ids = range(len(values)) if name == 'refusal' else values
                if name in ('deployed', 'compilation'):  # each takes seconds: the first stands here
                    slow = [pytest.param(value, marks=pytest.mark.slow) for value in values[1:]]
                    values = [*values[:1], *slow]
                metafunc.parametrize(name, values, ids=list(map(str, ids)))

    def build(self, variant=None, **changed):
        arguments = {**self.arguments, **(self.variants[variant] if variant else {}), **changed}
        model = MODELS.build(copy.deepcopy(dict(type=self.type, **arguments)))
        for name, parameter in model.named_parameters():
            if name.endswith('scale'):  # of an attention, which starts as the identity
                torch.nn.init.constant_(parameter, 0.7)
        return model

    def inputs(self, size, batch=2):
        """What the model takes, as a tuple of arguments; an image or a map."""
        return (0.5 * torch.randn(batch, self.arguments.get('in_channels', 3), *size),)

    def shapes(self, model, size, batch):
        """Shapes of all tensors that the model returns."""
        raise NotImplementedError

    def objective(self, model, inputs):
        """A number that all of the model has a part in."""
        return sum(x.square().sum() for x in tensors(model(*inputs)))

    @torch.no_grad()
    def test_shapes_at_any_size(self, variant, size):
        model = self.build(variant).eval()
        for batch in (1, 3):
            outputs = tensors(model(*self.inputs(size, batch)))
            assert [tuple(x.shape) for x in outputs] == self.shapes(model, size, batch)
            assert all(x.isfinite().all() for x in outputs)

    @torch.no_grad()
    def test_predicts_repeatably_and_each_image_as_if_alone(self, variant):
        model = self.build(variant).eval()
        inputs = self.inputs(self.sizes[0], 3)
        together = tensors(model(*inputs))
        for again in (model, model.train().eval()):
            assert all(map(torch.equal, tensors(again(*inputs)), together))
        for index in range(3):
            alone = model(*tree_map(lambda x, i=index: x[i : i + 1], inputs))
            expected = [x[index : index + 1] for x in together]
            torch.testing.assert_close(tensors(alone), expected, rtol=1e-4, atol=1e-5)

    def test_every_parameter_gets_a_finite_gradient(self, variant):
        model = self.build(variant).train()
        inputs = tree_map(lambda x: x.requires_grad_(), self.inputs(self.sizes[0]))
        self.objective(model, inputs).backward()
        assert any(x.grad is not None for x in tensors(inputs))
        assert all(x.grad is None or x.grad.isfinite().all() for x in tensors(inputs))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or name.endswith(self.idle), name

    @torch.no_grad()
    def test_state_dict_round_trip(self, variant):
        model, other = self.build(variant).eval(), self.build(variant).eval()
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        inputs = self.inputs(self.sizes[0])
        assert all(map(torch.equal, tensors(other(*inputs)), tensors(model(*inputs))))

    def test_what_cannot_be_built_is_named(self, refusal):
        arguments, message = refusal
        with pytest.raises(ValueError, match=message):
            self.build(**arguments)


class DeployedSuite(ModelSuite):
    """What holds for models that are compiled and exported by themselves, too.

    ``deployed`` names the variants for which it is tried, all but the first in the slow tests.
    """

    deployed = ('plain',)
    #: Variants to compile, each 'static' with its gradient, for 'dynamic' sizes or in 'autocast'.
    compilations = (('plain', 'static'),)
    #: The oldest torch that can.
    compiled_by = '2.1'
    #: Sizes of what an exported model gets, other than that of the export.
    exported_sizes = ((20, 15), (7, 30), (1, 1), (3, 5))

    def module(self, variant):
        """The model as a module that takes a map, as the exporters ask for."""
        return self.build(variant).eval()

    def map(self, size, batch=2):
        return tensors(self.inputs(size, batch))[-1]

    def test_compiles_without_a_graph_break(self, compilation):
        if digit_version(torch.__version__) < digit_version(self.compiled_by):
            pytest.skip(f'torch.compile does not know before torch {self.compiled_by} what it uses')
        torch._dynamo.reset()
        variant, how = compilation
        module, dynamic = self.module(variant), how == 'dynamic'
        # This backend leaves out the slow generation of code.
        compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend='aot_eager')
        for size in ((12, 17), (20, 9))[: 1 + dynamic]:
            results = []
            x = self.map(size).requires_grad_(how == 'static')
            for run in (module, compiled):
                with (
                    torch.set_grad_enabled(how == 'static'),
                    torch.autocast('cpu', dtype=torch.bfloat16, enabled=how == 'autocast'),
                ):
                    out = run(x)
                gradient = torch.autograd.grad(out.square().sum(), x) if how == 'static' else ()
                results.append((out, *gradient))
            torch.testing.assert_close(*results)

    @pytest.mark.parametrize('dynamic', [False, True], ids=['fixed', 'dynamic'])
    def test_exports_to_onnx_by_tracing(self, deployed, dynamic, tmp_path):
        pytest.importorskip('onnx', reason='the exporter needs onnx')
        module = self.module(deployed)
        axes = {0: 'batch', 2: 'height', 3: 'width'}
        with warnings.catch_warnings():
            # A size that becomes a constant is a TracerWarning.
            warnings.filterwarnings('error', category=torch.jit.TracerWarning)
            warnings.filterwarnings('ignore', category=DeprecationWarning)  # it is old
            torch.onnx.export(
                module,
                (self.map((20, 15), batch=1),),
                str(tmp_path / 'module.onnx'),
                input_names=['x'],
                output_names=['out'],
                dynamic_axes=dict(x=axes, out=axes) if dynamic else None,
                **(dict(dynamo=False) if HAS_DYNAMO_EXPORTER else {}),
            )
        self.check_onnx(module, tmp_path / 'module.onnx', dynamic, batch=2 if dynamic else 1)

    @pytest.mark.skipif(
        not HAS_DYNAMO_EXPORTER, reason='torch.onnx.export of this torch has no dynamo=True'
    )
    def test_exports_to_onnx_through_dynamo(self, deployed, tmp_path):
        for package in ('onnx', 'onnxscript'):
            pytest.importorskip(package, reason=f'the exporter needs {package}')
        module = self.module(deployed)
        height, width = (torch.export.Dim(side, min=1, max=4096) for side in ('height', 'width'))
        torch.onnx.export(
            module,
            (self.map((20, 15)),),
            str(tmp_path / 'module.onnx'),
            dynamo=True,
            dynamic_shapes=({2: height, 3: width},),
            verbose=False,
        )
        self.check_onnx(module, tmp_path / 'module.onnx', dynamic=True, batch=2)

    @torch.no_grad()
    def check_onnx(self, module, path, dynamic, batch):
        onnxruntime = pytest.importorskip('onnxruntime', reason='it runs what was exported')
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        for size in self.exported_sizes if dynamic else [(20, 15)]:
            x = self.map(size, batch)
            (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            torch.testing.assert_close(torch.from_numpy(out), module(x), rtol=0, atol=1e-4)

    @pytest.mark.skipif(
        not HAS_DYNAMO_EXPORTER, reason='torch.export of this torch knows no such dynamic shapes'
    )
    @torch.no_grad()
    def test_exports_as_a_program_for_any_size(self, deployed):
        module = self.module(deployed)
        sizes = ({2: torch.export.Dim('height', min=2), 3: torch.export.Dim('width', min=2)},)
        exported = torch.export.export(module, (self.map((20, 15)),), dynamic_shapes=sizes)
        for size in ((20, 15), (7, 30), (3, 5)):
            x = self.map(size)
            torch.testing.assert_close(exported.module()(x), module(x))


class HeadSuite(ModelSuite):
    """What holds for every decode head, alone or of several networks."""

    label_size = (18, 14)

    def objective(self, model, inputs):
        losses = model.loss(*inputs, labelled(2, self.label_size), train_cfg={})
        return sum(value for name, value in losses.items() if 'loss' in name)

    @pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
    def test_predicts_at_the_size_of_the_image(self, variant, training):
        model = self.build(variant).train(training)
        metas = [sample.metainfo for sample in labelled(2, self.label_size)]
        logits = model.predict(*self.inputs(self.sizes[0]), metas, test_cfg={})
        assert {x.shape for x in tensors(logits)} == {(2, 3, *self.label_size)}


class SiteSuite(HeadSuite):
    """What holds for a head that offers its maps at sites."""

    @torch.no_grad()
    def test_offers_the_declared_sites_and_goes_on_with_what_it_is_sent(self, variant):
        head = self.build(variant).eval()
        (x,) = self.inputs(self.sizes[0])
        layers = [(site, c) for site, channels in head.site_channels.items() for c in channels]
        for changed in (None, *range(len(layers))):
            offered = []

            def exchange(site, features, offered=offered, changed=changed):
                offered.append((site, features['head'].shape[1]))
                return {'head': features['head'] + (len(offered) - 1 == changed)}

            logits = run_in_step(dict(head=head.steps(x)), exchange)['head']
            assert sorted(offered) == sorted(layers)
            assert torch.equal(logits, head(x)) == (changed is None)

    def test_other_levels_and_channels_are_named(self):
        (x,) = self.inputs(self.sizes[0])
        with pytest.raises(ValueError, match=r'built for 10 channels at level -1 .* returns 12'):
            self.build(in_channels=10)(x)
        with pytest.raises(ValueError, match=r'takes level 5 .* returns 2 levels'):
            self.build(in_index=5)(x)
