"Exported files of ours and of other programs: the same boxes as PyTorch, and clear errors."
import io
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import decisive_model
from PIL import Image

from cjm_yolox_pytorch.detection.backends import load_exported_network
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.detection.onnx import OnnxDetector
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.inference import YOLOXInferenceWrapper, scored_boxes
from cjm_yolox_pytorch.model import build_model

onnx = pytest.importorskip('onnx')
for needed in ('onnxruntime', 'openvino', 'onnxscript'): pytest.importorskip(needed)
SIZE = 96


@pytest.fixture(scope='module')
def sure():
    "Weights of a random network that finds several things in every image"
    model = decisive_model(3)
    names = ['cat', 'dog', 'owl']
    return Weights(model.state_dict(), 'yolox_nano', 3, (.1, .05, 0.), (1., .9, 1.1), names=names, size=SIZE)


@pytest.fixture(scope='module')
def photos():
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)) for _ in range(3)]
    return [image.resize(size, Image.BICUBIC) for image, size in zip(small, [(120, 90), (64, 150), (96, 96)])]


@pytest.fixture(scope='module')
def expected(sure, photos):
    found = load_detector(sure, 'cpu')(photos)
    assert min(map(len, found)) > 3
    return found


def assert_same(found, expected):
    "Each detection has its like in the other list, but for one that rounding decides about"
    for got, want in zip(found, expected, strict=True):
        like = (got.boxes[:, None] - want.boxes).abs().amax(-1) < .05
        like &= (got.labels[:, None] == want.labels) & ((got.scores[:, None] - want.scores).abs() < 1e-3)
        assert len(want) > 3 and (~like.any(0)).sum() <= 1 and (~like.any(1)).sum() <= 1


@pytest.fixture(scope='module')
def files(sure, tmp_path_factory):
    "Exported files by name; traced once for those that differ in the file only"
    from cjm_yolox_pytorch.deploy.export import export_weights
    folder = tmp_path_factory.mktemp('files')
    deep = replace(sure, notes=dict(bit_depth=12))
    made = dict(onnx={}, xml={}, pt2={}, raw=dict(raw=True, static=True))
    made |= dict(camera=dict(camera=True, suppress=True, static=True))
    for name, options in made.items():
        suffix = f'.{name}' if name in ('xml', 'pt2') else '.onnx'
        export_weights(deep, folder/f'{name}{suffix}', **options)
    return folder


@pytest.mark.parametrize('name', ['onnx.onnx', 'xml.xml', 'pt2.pt2', 'raw.onnx', 'camera.onnx'])
def test_files_find_what_weights_do(files, photos, expected, name):
    detect = load_detector(files/name)
    found = detect(photos)
    assert_same(found, expected)
    assert found[0].names == ['cat', 'dog', 'owl'] and detect.spec.img_size == SIZE and detect.bit_depth == 12
    assert_same([detect(photos[1])], expected[1:2])
    assert detect([]) == []


@pytest.mark.parametrize('name', ['onnx.onnx', 'xml.xml', 'pt2.pt2'])
def test_files_of_any_size_take_another(files, sure, photos, name):
    assert_same(load_detector(files/name, img_size=(64, 128))(photos), load_detector(sure, 'cpu', (64, 128))(photos))
    for size in (100, 32, 2000):
        with pytest.raises(ValueError, match=f'img_size={size}: .*{name} takes multiples of 32, from 64 to 1280'):
            load_detector(files/name, img_size=size)


def test_static_files_say_their_size(files):
    load_detector(files/'raw.onnx', img_size=SIZE)
    with pytest.raises(ValueError, match='img_size=64: .*raw.onnx takes only images of 96x96 pixels'):
        load_detector(files/'raw.onnx', img_size=64)


def test_options_of_nms_work_on_files(files, sure, photos):
    weights, raw, decoded = (load_detector(f, 'cpu') for f in (sure, files/'raw.onnx', files/'onnx.onnx'))
    for options in (dict(mirrored=True), dict(conf=.3), dict(iou=.2, class_agnostic=True)):
        assert_same(decoded(photos, **options), weights(photos, **options))
    assert_same(raw(photos, multi_label=True), weights(photos, multi_label=True))
    with pytest.raises(ValueError, match='multi_label: .*onnx.onnx gives the best class only; export it again with'):
        decoded(photos, multi_label=True)


@pytest.mark.parametrize('tile', [None, 64])
def test_one_class_for_each_object_in_files_of_every_kind(files, sure, photos, tile):
    "Also where the file suppresses by class itself"
    def find(source, agnostic=True):
        options = dict(conf=.3, iou=.3, max_detections=2000, class_agnostic=agnostic, tile=tile)
        return load_detector(source, 'cpu')(photos, **options)
    want = find(sure)
    assert sum(map(len, want)) < sum(map(len, find(sure, False)))
    for name in ('raw.onnx', 'onnx.onnx', 'xml.xml', 'pt2.pt2', 'camera.onnx'): assert_same(find(files/name), want)
    if tile: return
    numpy = OnnxDetector(files/'onnx.onnx')
    counts = [len(numpy(image, conf=.3, iou=.3, class_agnostic=True)[0]) for image in photos]
    assert counts == pytest.approx([len(d) for d in want], abs=1)


def test_names_are_those_given(files):
    assert load_detector(files/'xml.xml', names=['a', 'b', 'c']).names == ['a', 'b', 'c']
    with pytest.raises(ValueError, match='onnx.onnx: 2 names for 3 classes'):
        load_detector(files/'onnx.onnx', names=['a', 'b'])


def test_files_run_on_the_cpu(files):
    load_detector(files/'onnx.onnx', 'cpu')
    with pytest.raises(ValueError, match="device='cuda': .*onnx.onnx runs on the CPU"):
        load_detector(files/'onnx.onnx', 'cuda')


def test_kind_is_told_by_content(files, tmp_path, photos, expected, sure):
    "Whatever a file is called"
    shutil.copy(files/'onnx.onnx', tmp_path/'network.pth')
    shutil.copy(files/'pt2.pt2', tmp_path/'network.zip')
    save_weights(sure, tmp_path/'network.onnx')
    for name in ('network.pth', 'network.zip', 'network.onnx'):
        assert_same(load_detector(tmp_path/name, 'cpu')(photos), expected)


def test_exported_files_keep_notes_and_thresholds(files):
    info = load_exported_network(files/'camera.onnx').info
    assert (info.output, info.conf, info.iou, info.notes, info.model_type) == (
        'suppressed', .25, .65, dict(bit_depth=12), 'yolox_nano')


def test_command_predicts_with_files(files, photos, tmp_path):
    for i, photo in enumerate(photos): photo.save(tmp_path/f'{i}.png')
    for name, conf in (('onnx.onnx', .1), ('camera.onnx', .25), ('camera.onnx', .1)):
        with redirect_stdout(io.StringIO()) as printed:
            yolox_predict(str(files/name), [str(tmp_path/'0.png')], out=str(tmp_path/name), conf=conf)
        text = ' '.join(printed.getvalue().split())
        said = 'camera.onnx keeps only boxes of score > 0.25, whatever --conf says' in text
        assert said == ((name, conf) == ('camera.onnx', .1)) and '1 image, ' in text
        assert (tmp_path/name/'detections.json').exists()


# ---- Files of other programs

def write_like(path, module, size, inputs='images', outputs=('output',), dynamic=None):
    x = torch.zeros(1, 3, size, size)
    names = dict(input_names=[inputs], output_names=[*outputs])
    torch.onnx.export(module.eval(), (x,), str(path), dynamo=False, dynamic_axes=dynamic, **names)
    return path


class LikeMegvii(torch.nn.Module):
    "Takes BGR from 0 to 255; gives [B, A, 5 + C], centers and sides or undecoded"
    def __init__(self, weights, decode):
        super().__init__()
        model = build_model(weights.model_type, weights.num_classes, pretrained=weights).eval()
        self.wrapper = YOLOXInferenceWrapper(model, weights.mean, weights.std, scale_inp=True,
            run_box_and_prob_calculation=False)
        self.decode = decode

    def forward(self, x):
        x = x.flip(1)
        rows = self.wrapper(x)
        if not self.decode: return rows
        boxes, _ = scored_boxes(self.wrapper.model(self.wrapper.preprocess_input(x)))
        centers, sides = (boxes[..., :2] + boxes[..., 2:])/2, boxes[..., 2:] - boxes[..., :2]
        return torch.cat([centers, sides, rows[..., 4:]], -1)


@pytest.mark.parametrize('decode', [True, False])
@pytest.mark.filterwarnings('ignore')
def test_files_like_those_of_megvii_are_recognized(sure, photos, expected, tmp_path, decode):
    file = write_like(tmp_path/'megvii.onnx', LikeMegvii(sure, decode), SIZE)
    detect = load_detector(file)
    assert_same(detect(photos), expected)
    assert detect.model.info.output == ('centers' if decode else 'raw') and detect.names is None
    assert load_detector(file, names=['a', 'b', 'c']).names == ['a', 'b', 'c']
    with redirect_stdout(io.StringIO()) as printed:
        photos[0].save(tmp_path/'a.png')
        yolox_predict(str(file), [str(tmp_path/'a.png')], out=str(tmp_path/'out'), names='ant,bee,cow')
    guess = 'megvii.onnx is of another program: it seems to take bgr255 (--pixels) and to give'
    assert guess in ' '.join(printed.getvalue().split())
    wrong = load_detector(file, pixels='rgb255')(photos)
    assert [d.scores.tolist() for d in wrong] != [d.scores.tolist() for d in expected]


@pytest.mark.filterwarnings('ignore')
def test_foreign_files_of_any_size_need_one(sure, photos, expected, tmp_path):
    axes = dict(images={0: 'batch', 2: 'height', 3: 'width'}, output={0: 'batch', 1: 'cells'})
    file = write_like(tmp_path/'any.onnx', LikeMegvii(sure, False), SIZE, dynamic=axes)
    with pytest.raises(ValueError, match=r'any.onnx takes images of any size: say which with img_size \(--img-size\)'):
        load_detector(file)
    assert_same(load_detector(file, img_size=SIZE)(photos), expected)


@pytest.mark.filterwarnings('ignore')
def test_files_of_0_2_and_unknown_ports(sure, photos, expected, tmp_path):
    model = build_model('yolox_nano', 3, pretrained=sure).eval()
    wrapper = YOLOXInferenceWrapper(model, sure.mean, sure.std, run_box_and_prob_calculation=False)
    assert_same(load_detector(write_like(tmp_path/'old.onnx', wrapper, SIZE, 'input'))(photos), expected)
    file = write_like(tmp_path/'other.onnx', wrapper, SIZE, 'x', ['y'])
    with pytest.raises(ValueError, match=r'other.onnx does not say how it takes pixels .*choose pixels \(--pixels\)'):
        load_detector(file)
    with pytest.raises(ValueError, match="pixels='rgb': choose one of"): load_detector(file, pixels='rgb')
    assert_same(load_detector(file, pixels='rgb1')(photos), expected)


class LikeMmdeploy(torch.nn.Module):
    "Takes BGR from 0 to 255; gives the kept boxes as [B, N, 5], and labels, padded"
    def __init__(self, weights):
        super().__init__()
        from cjm_yolox_pytorch.deploy.export import exportable
        self.module = exportable(weights, suppress=True)

    def forward(self, x):
        rows = self.module(x.flip(1))
        dets = torch.cat([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5], rows[:, 6:]], 1)
        dets = torch.cat([dets, torch.zeros(7, 5)])
        return dets[None], torch.cat([rows[:, 5].long(), torch.full((7,), -1)])[None]


@pytest.mark.filterwarnings('ignore')
def test_files_like_those_of_mmdeploy_need_names(sure, photos, expected, tmp_path):
    axes = dict(dets={1: 'n'}, labels={1: 'n'})
    file = write_like(tmp_path/'mm.onnx', LikeMmdeploy(sure), SIZE, 'input', ['dets', 'labels'], axes)
    with pytest.raises(ValueError, match=r'mm.onnx does not say how many classes it has: give their names \(--names\)'):
        load_detector(file)
    assert_same(load_detector(file, names=sure.names)(photos), expected)
    with pytest.raises(ValueError, match='mm.onnx found a class [12], but has 1 class'):
        load_detector(file, names=['cat'])(photos)


@pytest.mark.filterwarnings('ignore')
def test_networks_of_another_kind_are_refused(tmp_path):
    class Classifier(torch.nn.Module):
        def forward(self, x): return x.mean((2, 3))
    file = write_like(tmp_path/'classifier.onnx', Classifier(), 64)
    with pytest.raises(ValueError, match=r'not a known detector: for 64x64 pixels it gives output \[1, 3\]; a YOLOX'):
        load_detector(file)


# ---- Errors

def message_of(file, tmp_path, monkeypatch, capsys, command='yolox_predict'):
    "The one line that the command prints"
    monkeypatch.setattr(sys, 'argv', [command, str(file), str(tmp_path), '--out', str(tmp_path/'out')])
    Image.new('RGB', (50, 50)).save(tmp_path/'photo.png')
    with pytest.raises(SystemExit) as end: yolox_predict()
    capsys.readouterr()
    line = str(end.value)
    assert line.startswith('yolox_predict: error: ') and '\n' not in line
    assert file.name in line and 'opcode' not in line
    return line


def bad_files(files, folder):
    onnx_bytes, xml_bytes = (files/'onnx.onnx').read_bytes(), (files/'xml.xml').read_bytes()
    cut = 'cut off'
    yield 'cut.onnx', onnx_bytes[:len(onnx_bytes)//2], f'not an ONNX file that ONNX Runtime can load, or was {cut}'
    yield 'empty.onnx', b'', cut
    yield 'text.onnx', b'hello', cut
    yield 'alone.xml', xml_bytes, 'needs alone.bin beside it: copy both files'
    yield 'labels.xml', b'<annotation><object/></annotation>', 'its XML begins with <annotation>, not with <net>'
    yield 'empty.xml', b'', 'its XML begins with nothing, not with <net>'
    yield 'cut.pt2', (files/'pt2.pt2').read_bytes()[:9999], f'not a pt2 file, or was {cut}'
    yield 'other.pt', b'\x08hello', 'its bytes are not those of a checkpoint'
    yield 'page.pth', b'<!doctype html>', 'its bytes are not those of a checkpoint'
    yield 'text.pth', b'hello world, this is text', 'its bytes are not those of a checkpoint'


def test_bad_files_are_named_in_one_line(files, tmp_path, monkeypatch, capsys):
    for name, content, message in bad_files(files, tmp_path):
        (tmp_path/name).write_bytes(content)
        assert message in message_of(tmp_path/name, tmp_path, monkeypatch, capsys), name


def test_files_of_openvino_that_were_cut_are_named(files, tmp_path, monkeypatch, capsys):
    for name, part in (('xml', 'program'), ('bin', 'numbers')):
        for suffix in ('xml', 'bin'): shutil.copy(files/f'xml.{suffix}', tmp_path/f'{part}.{suffix}')
        half = tmp_path/f'{part}.{name}'
        half.write_bytes(half.read_bytes()[:half.stat().st_size//2])
        line = message_of(tmp_path/f'{part}.xml', tmp_path, monkeypatch, capsys)
        assert 'cannot be loaded by OpenVINO, or was cut off' in line


def test_programs_of_others_are_not_loaded(tmp_path, monkeypatch, capsys):
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1, 3, 64, 64),))
    torch.export.save(program, tmp_path/'other.pt2')
    assert 'was not written by yolox_export' in message_of(tmp_path/'other.pt2', tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize('name, module', [('onnx.onnx', 'onnxruntime'), ('xml.xml', 'openvino')])
def test_missing_program_says_what_to_install(files, tmp_path, monkeypatch, capsys, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, 'argv', ['yolox_predict', str(files/name), str(tmp_path), '--out', str(tmp_path/'out')])
    Image.new('RGB', (50, 50)).save(tmp_path/'photo.png')
    with pytest.raises(SystemExit) as end: yolox_predict()
    assert f"{module} is missing: pip install 'cjm-yolox-pytorch[export]'" in str(end.value)


def test_exported_files_are_not_weights(files):
    for name, kind in (('onnx.onnx', 'ONNX'), ('xml.xml', 'OpenVINO'), ('pt2.pt2', 'PT2')):
        with pytest.raises(ValueError, match=f'{name} is a file of {kind}.*, not of weights: give the weights it was'):
            load_weights(files/name)


@pytest.mark.parametrize('changed', ['{}', '[]', 'null', 'no json', '{"input": 3}'])
def test_changed_metadata_are_named(files, tmp_path, changed):
    model = onnx.load(files/'raw.onnx')
    onnx.helper.set_model_props(model, dict(cjm_yolox_pytorch=changed))
    onnx.save(model, tmp_path/'changed.onnx')
    with pytest.raises(ValueError, match='changed.onnx: its metadata were changed and cannot be read'):
        load_detector(tmp_path/'changed.onnx')


# ---- Without PyTorch

def test_numpy_finds_what_pytorch_does(files, photos, expected):
    for name in ('onnx.onnx', 'raw.onnx', 'camera.onnx'):
        detect = OnnxDetector(files/name)
        for photo, want in zip(photos, expected):
            boxes, scores, labels = detect(np.asarray(photo))
            assert boxes.dtype == scores.dtype == np.float32 and len(boxes) > 0
            best = min(3, len(boxes)) # Resizing differs by one level
            np.testing.assert_allclose(scores[:best], want.scores[:best], atol=.05)


def test_numpy_takes_images_of_pillow(files, photos):
    detect = OnnxDetector(files/'onnx.onnx')
    for found, want in zip(detect(photos[0]), detect(np.asarray(photos[0]))): np.testing.assert_array_equal(found, want)
    with pytest.raises(TypeError, match='an image is a path, a PIL image or an array, not a Tensor'):
        detect(torch.zeros(3, 9, 9))


def test_numpy_needs_no_pytorch(files, photos, tmp_path):
    photos[2].save(tmp_path/'photo.png')
    code = f'''import sys
sys.modules["torch"] = None
from cjm_yolox_pytorch.detection.onnx import OnnxDetector
print(len(OnnxDetector({str(files/"onnx.onnx")!r})({str(tmp_path/"photo.png")!r})[0]))'''
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr


def test_numpy_refuses_deep_images(files, tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path/'deep.png')
    with pytest.raises(ValueError, match='deep.png has more than 8 bits a channel: load_detector takes such images'):
        OnnxDetector(files/'raw.onnx')(tmp_path/'deep.png')


# ---- Real weights and photos

@pytest.fixture(scope='module')
def real(shared, tmp_path_factory):
    "The published weights of nano, and files that were made of them"
    from cjm_yolox_pytorch.deploy.export import export_weights
    weights, folder = load_weights(shared/'weights/yolox_nano_coco.pth'), tmp_path_factory.mktemp('real')
    for suffix in ('.onnx', '.xml', '.pt2'): export_weights(weights, folder/f'nano{suffix}')
    export_weights(weights, folder/'raw.onnx', raw=True, static=True)
    return weights, folder


def assert_same_precision(weights, folder, names, split):
    "AP of each file is that of PyTorch within .001; returns that"
    from cjm_yolox_pytorch.detection.detector import prepare_network
    from cjm_yolox_pytorch.evaluation.evaluate import detect
    from cjm_yolox_pytorch.evaluation.metrics import average_precision
    def measure(network):
        model, spec = prepare_network(network, 'cpu')
        return average_precision(split, detect(model, split, spec))['AP']
    want = measure(weights)
    for name in names: assert measure(load_exported_network(folder/name)) == pytest.approx(want, abs=.001), name
    return want


@pytest.mark.slow
def test_average_precision_is_that_of_pytorch(real, shared):
    from cjm_yolox_pytorch.data.splits import read_split
    weights, folder = real
    split = read_split(shared/'data/coco_ccby', 'all')
    want = assert_same_precision(weights, folder, ['nano.onnx', 'nano.xml', 'nano.pt2', 'raw.onnx'], split)
    assert want == pytest.approx(.331, abs=.004)


@pytest.mark.slow
def test_average_precision_on_bccd_is_that_of_pytorch(shared, tmp_path):
    "After a brief training, which is enough to find cells"
    from cjm_yolox_pytorch.data.annotations import relabel
    from cjm_yolox_pytorch.data.splits import read_split
    from cjm_yolox_pytorch.deploy.export import export_weights
    from cjm_yolox_pytorch.training.train import yolox_train
    data, start = shared/'data/bccd', shared/'weights/yolox_nano_coco.pth'
    yolox_train(str(data), str(start), model='yolox_nano', epochs=2, img_size=192, out=str(tmp_path), device='cpu',
        workers=0)
    weights = load_weights(tmp_path/'best.safetensors')
    files = ['nano.onnx', 'nano.xml', 'nano.pt2']
    for name in files: export_weights(weights, tmp_path/name)
    split = relabel(read_split(data, 'test'), weights.names)
    assert assert_same_precision(weights, tmp_path, files, split) > .2


@pytest.mark.slow
def test_detections_in_cells_are_those_of_pytorch(real, shared):
    "On bccd, whose classes these weights do not know, box by box"
    weights, folder = real
    images = sorted((shared/'data/bccd/JPEGImages').glob('*.jpg'))[:24]
    expected = load_detector(weights, 'cpu')(images, conf=.02)
    assert sum(map(len, expected)) > 100
    for name in ('nano.onnx', 'nano.xml', 'nano.pt2', 'raw.onnx'):
        for got, want in zip(load_detector(folder/name)(images, conf=.02), expected, strict=True):
            assert abs(len(got) - len(want)) <= 1
            like = (got.boxes[:, None] - want.boxes).abs().amax(-1) < .1
            assert (~like.any(0)).sum() <= 1 and (~like.any(1)).sum() <= 1
