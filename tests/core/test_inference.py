"The wrapper takes the steps that 0.2 took, keeps fp64, and traces without a warning for images of any size."
import io
import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cjm_yolox_pytorch.inference import YOLOXInferenceWrapper
from cjm_yolox_pytorch.model import YOLOX, CSPDarknet, YOLOXHead, YOLOXPAFPN
from cjm_yolox_pytorch.utils import generate_output_grids


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    return YOLOX(CSPDarknet('P5', .33, .125), YOLOXPAFPN([32, 64, 128], 32, 1), YOLOXHead(3, 32, 32)).eval()


class Recorder(YOLOXInferenceWrapper):
    "Notes which steps are called with which arguments"
    def note(self, name, *args):
        self.called = [*getattr(self, 'called', []), (name, *args)]
        return getattr(super(), name)(*args)

    def preprocess_input(self, x): return self.note('preprocess_input', x)
    def process_output(self, model_output): return self.note('process_output', model_output)
    def calculate_boxes_and_probs(self, model_output, output_grids):
        return self.note('calculate_boxes_and_probs', model_output, output_grids)


@torch.no_grad()
def test_wrapper_calls_the_steps_of_0_2(small):
    wrapper, x = Recorder(small), torch.rand(2, 3, 64, 96)
    rows = wrapper(x)
    (first, image), (second, maps), (third, undecoded, grids) = wrapper.called
    assert [first, second, third] == ['preprocess_input', 'process_output', 'calculate_boxes_and_probs']
    assert image is x and isinstance(maps, tuple) and [len(levels) for levels in maps] == [3, 3, 3]
    assert undecoded.shape == (2, 126, 8) and rows.shape == (2, 126, 6)
    assert torch.equal(grids, generate_output_grids(64, 96))
    assert torch.equal(wrapper.calculate_boxes_and_probs(undecoded, generate_output_grids(64, 96)), rows)


@torch.no_grad()
def test_wrapper_without_decoding_takes_two_steps(small):
    wrapper = Recorder(small, run_box_and_prob_calculation=False)
    wrapper(torch.rand(1, 3, 64, 64))
    assert [name for name, *_ in wrapper.called] == ['preprocess_input', 'process_output']


@torch.no_grad()
def test_wrapper_normalizes_with_0_and_1_unless_told(small):
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(YOLOXInferenceWrapper(small).preprocess_input(x), x)
    state = YOLOXInferenceWrapper(small, torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1)).state_dict()
    YOLOXInferenceWrapper(small).load_state_dict(state)


@pytest.mark.parametrize('mean', [.5, [.5]*3, (.5, .5, .5), np.full(3, .5), torch.full((1, 3, 1, 1), .5)])
def test_wrapper_takes_statistics_in_any_shape(small, mean):
    wrapper, x = YOLOXInferenceWrapper(small, mean), torch.rand(1, 3, 64, 64)
    assert wrapper.normalize_mean.shape == (1, 3, 1, 1)
    found = wrapper.preprocess_input(x)
    assert found.dtype is torch.float32
    assert_close(found, x - .5)


def test_wrapper_refuses_statistics_of_another_length(small):
    with pytest.raises(ValueError, match='2 numbers to normalize with: give one, or one for each of 3 channels'):
        YOLOXInferenceWrapper(small, [.5, .5])


@torch.no_grad()
def test_wrapper_keeps_statistics_in_fp64():
    double = torch.nn.Conv2d(3, 3, 1).double()
    mean = torch.tensor([1/3]*3, dtype=torch.float64)
    wrapper = YOLOXInferenceWrapper(double, mean, mean)
    assert wrapper.normalize_mean.dtype is torch.float64
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(wrapper.preprocess_input(x), (x - 1/3)/(1/3))


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('images', [torch.float32, torch.float64, torch.uint8])
def test_wrapper_gives_the_network_its_own_dtype(dtype, images):
    wrapper = YOLOXInferenceWrapper(torch.nn.Conv2d(3, 3, 1).to(dtype), torch.full((3,), .5).double())
    assert wrapper.preprocess_input(torch.ones(1, 3, 4, 4).to(images)).dtype is dtype


# ---- Tracing

def nhwc(x): return (x*255).permute(0, 2, 3, 1)
def same(x): return x


def traced(module, x, strict=True):
    "Any warning of the tracer is an error"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', message='.*torch.jit.trace', category=FutureWarning) # A newer way exists
        return torch.jit.trace(module, x, check_trace=False, strict=strict)


SIZES = [(1, 3, 64, 96), (2, 3, 96, 64), (1, 3, 50, 70), (2, 3, 100, 33)]


@torch.no_grad()
@pytest.mark.parametrize('example', SIZES)
def test_trace_of_a_model_fits_every_size_and_does_not_warn(small, example):
    run = traced(small, torch.rand(*example), strict=False) # Strict tracing warns of any list in an output
    for size in SIZES:
        x = torch.rand(*size)
        for found, want in zip(run(x), small(x)):
            for f, w in zip(found, want): assert torch.equal(f, w)


@torch.no_grad()
@pytest.mark.parametrize('options, layout', [
    ({}, same), (dict(run_box_and_prob_calculation=False), same), (dict(scale_inp=True, channels_last=True), nhwc)])
def test_trace_of_a_wrapper_fits_every_size_and_does_not_warn(small, options, layout):
    wrapper = YOLOXInferenceWrapper(small, [.4, .5, .6], .5, **options).eval()
    run = traced(wrapper, layout(torch.rand(1, 3, 64, 96)))
    for size in SIZES:
        x = layout(torch.rand(*size))
        assert torch.equal(run(x), wrapper(x))


@torch.no_grad()
def test_old_onnx_exporter_does_not_warn_and_keeps_sizes_dynamic(small):
    onnxruntime = pytest.importorskip('onnxruntime')
    wrapper, file = YOLOXInferenceWrapper(small).eval(), io.BytesIO()
    axes = dict(images={0: 'batch', 2: 'height', 3: 'width'}, rows={0: 'batch', 1: 'cells'})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', category=DeprecationWarning) # A newer way exists
        torch.onnx.export(small, (torch.rand(1, 3, 64, 96),), io.BytesIO(), dynamo=False)
        names = dict(input_names=['images'], output_names=['rows'], dynamic_axes=axes)
        torch.onnx.export(wrapper, (torch.rand(1, 3, 64, 96),), file, dynamo=False, **names)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    for size in SIZES:
        x = torch.rand(*size)
        rows = session.run(None, dict(images=x.numpy()))[0]
        assert_close(torch.from_numpy(rows), wrapper(x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_old_onnx_file_of_one_size_runs_in_opencv(small, tmp_path):
    cv2 = pytest.importorskip('cv2')
    wrapper, x = YOLOXInferenceWrapper(small).eval(), torch.rand(1, 3, 64, 96)
    torch.onnx.export(wrapper, (x,), str(tmp_path/'old.onnx'), dynamo=False)
    classic = dict(engine=cv2.dnn.ENGINE_CLASSIC) if hasattr(cv2.dnn, 'ENGINE_CLASSIC') else {}
    network = cv2.dnn.readNetFromONNX(str(tmp_path/'old.onnx'), **classic)
    network.setInput(x.numpy())
    rows = torch.from_numpy(network.forward()).reshape(1, 126, 6)
    assert_close(rows, wrapper(x), atol=1e-3, rtol=1e-3)
