"The command with all its options, and the published weights on photos."
import io
import json
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_samples import FIGURES, assert_official, official
from PIL import Image

from cjm_yolox_pytorch.data.annotations import fingerprint
from cjm_yolox_pytorch.data.checks import Fault
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import hold_out, read_split
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.evaluation import evaluate
from cjm_yolox_pytorch.evaluation.evaluate import detect, yolox_eval
from cjm_yolox_pytorch.evaluation.metrics import (
    BACKGROUND_NAME, MATCH_KINDS, METRICS, VOC_METRICS, average_precision, coco_results)
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.files.letterbox import InputSpec
from cjm_yolox_pytorch.model import NORM_STATS, build_model


@pytest.fixture(scope='module')
def photos(shared, tmp_path_factory):
    "What `yolox_eval` prints and writes of the published nano weights, and the folder of the data"
    out, data = tmp_path_factory.mktemp('photos'), shared/'data/coco_ccby'
    with redirect_stdout(io.StringIO()) as printed:
        yolox_eval(str(shared/'weights/yolox_nano_coco.pth'), str(data), out=str(out), device='cpu')
    return printed.getvalue(), out, data


def read_json(path): return json.loads(path.read_text())


def official_of_file(data, annotations, rows):
    "From the dataset's own file, whose images and classes are numbered with gaps; and its class names"
    file = read_json(data/'annotations.json')
    images = {image['file_name']: image['id'] for image in file['images']}
    categories = {c['name']: c['id'] for c in file['categories']}
    def image_id(r): return images[Path(annotations.paths[r['image_id']]).name]
    rows = [dict(r, image_id=image_id(r), category_id=categories[annotations.names[r['category_id']]]) for r in rows]
    stats, by_class, _ = official(file, rows)
    return [c['name'] for c in sorted(file['categories'], key=lambda c: c['id'])], stats, by_class


def test_published_weights_score_what_the_official_program_counts(photos):
    printed, out, data = photos
    metrics = read_json(out/'metrics.json')
    # The metrics of the published weights; forty-five images leave AP75 some play
    for names, values, play in [
        (['AP', 'AP50'], [.331, .488], .004), (['AP75'], [.344], .008),
        (['AP_small', 'AP_medium', 'AP_large'], [.080, .302, .611], .004)]:
        assert [metrics[k] for k in names] == pytest.approx(values, abs=play)
    finite = json.loads((out/'metrics.json').read_text().replace('null', 'NaN'))
    assert_official(finite, *official_of_file(data, read_split(data, 'all'), read_json(out/'detections.json')))
    assert '45 images, 399 objects and 6 crowds' in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if str(out) not in line)


def test_several_labels_a_box_are_counted_as_the_official_program_does(photos, shared):
    _, out, data = photos
    weights, coco = load_weights(shared/'weights/yolox_nano_coco.pth'), read_split(data, 'all')
    model = build_model(weights.model_type, weights.num_classes, pretrained=weights).eval()
    found = detect(model, coco, InputSpec(416, weights.mean, weights.std), multi_label=True)
    metrics = average_precision(coco, found)
    assert_official(metrics, *official_of_file(data, coco, coco_results(found)))
    assert sum(map(len, found)) > len(read_json(out/'detections.json'))
    assert metrics['AP'] > read_json(out/'metrics.json')['AP']


@pytest.fixture(scope='module')
def shapes(draw_shapes):
    "Drawn shapes, and weights of a random network whose scores are as far apart as those of a trained one"
    folder = draw_shapes(train=4, val=6, test=8, size=96)
    torch.manual_seed(0)
    model = build_model('yolox_nano', 5, pretrained=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d): module.momentum = None
    with torch.no_grad(): model(torch.randn(8, 3, 96, 96))
    for convs in (model.bbox_head.multi_level_conv_obj, model.bbox_head.multi_level_conv_cls):
        for conv in convs:
            conv.bias.data.fill_(-1)
            conv.weight.data.mul_(3)
    names = read_split(folder, 'val').names
    weights = Weights(model.state_dict(), 'yolox_nano', 5, **NORM_STATS['yolox_nano'], names=names, size=96)
    save_weights(weights, folder/'nano.safetensors')
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    "Runs yolox_eval as from the shell: exit status or message, what was printed to stdout, and to stderr"
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['yolox_eval', *map(str, args), '--device', 'cpu'])
        code = 0
        try: yolox_eval()
        except SystemExit as e: code = e.args[0]
        return code, *capsys.readouterr()
    return run


def test_command_writes_and_prints(shapes, tmp_path, command):
    code, printed, _ = command(shapes/'nano.safetensors', shapes, '--out', tmp_path/'out', '--working_conf', .2)
    assert code == 0 and 'yolox_nano at 96 on test: 8 images' in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if str(tmp_path) not in line)
    assert {p.name for p in (tmp_path/'out').iterdir()} == FIGURES | {'metrics.json', 'truth.json', 'detections.json'}
    metrics, found, truth = (read_json(tmp_path/f'out/{name}.json') for name in ('metrics', 'detections', 'truth'))
    more = {'in_use', 'confusion', 'errors', 'intervals', 'split', 'size', 'latency', 'images_per_s'}
    assert set(metrics) == {*METRICS, *VOC_METRICS, 'classes', *more}
    assert set(metrics['classes']['disc']) == {*METRICS, *VOC_METRICS, 'objects', 'precision', 'recall'}
    assert set(metrics['in_use']) == {*MATCH_KINDS, 'missed', 'score', 'precision', 'recall', 'f1'}
    assert metrics['in_use']['score'] == .2 and metrics['in_use']['background'] > 0
    assert metrics['split'] == 'test' and 0 < metrics['latency']['network'] < metrics['latency']['total']
    stats, *_ = official(truth, found)
    np.testing.assert_allclose([-1 if metrics[k] is None else metrics[k] for k in METRICS], stats, atol=1e-6)


@pytest.mark.parametrize('kept', [True, False])
def test_stopped_evaluation_leaves_no_new_folder(shapes, tmp_path, monkeypatch, kept):
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr(evaluate, 'detect', stop)
    if kept: (tmp_path/'out').mkdir()
    files = [str(shutil.copy(shapes/'nano.safetensors', tmp_path/f'{name}.safetensors')) for name in 'ab']
    with pytest.raises(KeyboardInterrupt): yolox_eval(files, str(shapes), out=str(tmp_path/'out/new'), device='cpu')
    assert (tmp_path/'out').exists() == kept and not (tmp_path/'out/new').exists()


def test_json_has_the_metrics_and_everything_else_goes_to_stderr(shapes, tmp_path, command):
    code, printed, said = command(shapes/'nano.safetensors', shapes, '--json', '--thresholds', '--out', tmp_path/'out')
    found, written = json.loads(printed), read_json(tmp_path/'out/metrics.json')
    assert code == 0 and 'yolox_nano at 96 on test: 8 images' in said
    assert [row['name'] for row in found.pop('best_f1')][0] == 'all classes' and found == written
    files = [str(shutil.copy(shapes/'nano.safetensors', tmp_path/f'{name}.safetensors')) for name in 'ab']
    found = json.loads(command(*files, shapes, '--json')[1])
    assert [*found] == files and {m['split'] for m in found.values()} == {'test'}


def test_options_do_something(shapes, tmp_path, monkeypatch, capsys):
    # Drawing would take longest
    monkeypatch.setattr('cjm_yolox_pytorch.evaluation.report.save_figure', lambda fig, path: None)
    def run(**options):
        options = dict(split='val', img_size=64, out=str(tmp_path), device='cpu', **options)
        yolox_eval(str(shapes/'nano.safetensors'), str(shapes), **options)
        return read_json(tmp_path/'detections.json'), read_json(tmp_path/'metrics.json')
    found, _ = run()
    assert 'yolox_nano at 64 on val: 6 images' in capsys.readouterr().out
    assert len({r['image_id'] for r in found}) == 6
    surer, metrics = run(conf=.3)
    assert 0 < len(surer) < len(found)
    assert min(r['score'] for r in surer) > .3 and metrics['in_use']['score'] == .3
    assert len(run(max_detections=2)[0]) == 2*6
    assert len(run(iou=.1)[0]) < len(found)
    assert len(run(multi_label=True, max_detections=3000)[0]) > len(run(max_detections=3000)[0])


def test_images_that_training_held_out_are_measured(shapes, tmp_path, capsys):
    "Where there is but one split; of data that were trained on, there is a warning"
    (tmp_path/'only').mkdir()
    (tmp_path/'only/val').symlink_to(shapes/'val')
    only = read_split(tmp_path/'only', 'val')
    rest, held = hold_out(only)
    weights = load_weights(shapes/'nano.safetensors')
    changed = "trained on 'val' of other data, or of this before it changed: metrics may be too high"
    for trained_on, images, warning in [
        (fingerprint(rest), f'a tenth of val: {len(held)} image', ''),
        (fingerprint(only), 'val: 6 images', 'trained on all of these images: metrics may be too high'),
        (fingerprint(only.take([0])), 'val: 6 images', changed),
        (None, 'val: 6 images', "trained on 'val' of unknown data: metrics may be too high")]:
        notes = dict(training='val', fingerprint=trained_on) if trained_on else dict(training='val')
        save_weights(replace(weights, notes=notes), tmp_path/'noted.safetensors')
        yolox_eval(str(tmp_path/'noted.safetensors'), str(tmp_path/'only'), img_size=32, device='cpu')
        printed = ' '.join(capsys.readouterr().out.split()) # Lines of 80 columns
        assert f'yolox_nano at 32 on {images}' in printed and warning in printed
        assert ('trained on' in printed) == bool(warning)


@pytest.mark.parametrize('split, images, told', [('test', None, True), ('test', 'others', False), ('val', None, False)])
def test_test_split_that_chose_the_epoch_is_told(split, images, told, shapes, tmp_path, capsys):
    "Also if no threshold was chosen on it, but not if the images are others"
    C = load_weights(shapes/'nano.safetensors').num_classes
    notes = dict(validation=split, training='train', fingerprint='')
    if images: notes['thresholds'] = dict(score=.3, classes=[.3]*C, fingerprint=images)
    save_weights(replace(load_weights(shapes/'nano.safetensors'), notes=notes), tmp_path/'noted.safetensors')
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/split).symlink_to(shapes/'val')
    yolox_eval(str(tmp_path/'noted.safetensors'), str(tmp_path/'data'), img_size=32, device='cpu')
    printed = capsys.readouterr().out
    assert f'on {split}: 6 images' in printed
    assert ('the best epoch was chosen on this test split: metrics are slightly optimistic' in printed) == told


def test_split_that_was_trained_on_is_told_also_when_it_is_named(shapes, tmp_path, capsys):
    "Whatever the split is called now, and also if a tenth of it was held out"
    val = read_split(shapes, 'val')
    weights = load_weights(shapes/'nano.safetensors')
    cases = [(val, 'train', 'all of these images'), (hold_out(val)[0], 'val', 'most of these images'),
        (val.take([0]), 'val', "'val' of other data"), (val.take([0]), 'train', '')]
    for trained_on, training, told in cases:
        notes = dict(training=training, fingerprint=fingerprint(trained_on))
        save_weights(replace(weights, notes=notes), tmp_path/'noted.safetensors')
        yolox_eval(str(tmp_path/'noted.safetensors'), str(shapes), split='val', img_size=32, device='cpu')
        printed = capsys.readouterr().out
        assert 'on val: 6 images' in printed
        assert told in printed and ('metrics may be too high' in printed) == bool(told)


def test_split_without_a_usual_name_is_told(shapes, tmp_path, capsys):
    for folder in ('annotations', 'images'): (tmp_path/folder).mkdir()
    for n, name in enumerate(('val', 'test')):
        (tmp_path/f'images/fold{n}').symlink_to(shapes/name)
        content = read_json(shapes/name/'_annotations.coco.json')
        for image in content['images']: image['file_name'] = f'fold{n}/{image["file_name"]}'
        (tmp_path/f'annotations/fold{n}.json').write_text(json.dumps(content))
    yolox_eval(str(shapes/'nano.safetensors'), str(tmp_path), img_size=32, device='cpu')
    printed = capsys.readouterr().out
    assert "has the splits ['fold0', 'fold1']: measuring 'fold0'" in printed and 'on fold0: 6 images' in printed
    yolox_eval(str(shapes/'nano.safetensors'), str(tmp_path), split='fold1', img_size=32, device='cpu')
    assert 'has the splits' not in capsys.readouterr().out


@pytest.fixture
def perfect(shapes, tmp_path, monkeypatch):
    "Weights without names, of a network that finds everything and has the first two classes the other way round"
    weights = load_weights(shapes/'nano.safetensors')
    save_weights(replace(weights, names=None), tmp_path/'unnamed.safetensors')
    names = [weights.names[n] for n in (1, 0, 2, 3, 4)]
    def find(model, a, *args, **kwargs):
        rows = [a.objects(i) for i in range(len(a))]
        labels = [[names.index(a.names[c]) if a.names == weights.names else c for c in row[1]] for row in rows]
        return [Detections(torch.from_numpy(boxes), torch.ones(len(boxes)), torch.tensor(found).long())
            for (boxes, *_), found in zip(rows, labels)]
    monkeypatch.setattr('cjm_yolox_pytorch.evaluation.evaluate.detect', find)
    return tmp_path/'unnamed.safetensors', names


def test_several_files_make_one_table(shapes, tmp_path, command):
    "With their sizes and times; details of each are in its folder"
    weights = load_weights(shapes/'nano.safetensors')
    save_weights(replace(weights, size=64, names=None), tmp_path/'small.safetensors')
    files = shapes/'nano.safetensors', tmp_path/'small.safetensors'
    code, printed, _ = command(*files, shapes, '--split', 'val', '--out', tmp_path/'out')
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith('on val: 6 images'))
    assert code == 0 and lines[start + 1].split() == ['file', 'size', 'AP', 'AP50', 'ms/image', 'MB']
    rows = [line.split() for line in lines[start + 2:start + 4]]
    assert [row[-5] for row in rows] == ['96', '64'] and all(len(line) <= 80 for line in lines[start:start + 4])
    difference = next(line for line in lines[start + 4:] if line.startswith('small.safetensors: AP '))
    assert float(difference.split()[2]) == pytest.approx(float(rows[1][-4]) - float(rows[0][-4]), abs=2e-3)
    assert 'against nano.safetensors' in printed
    for row, file in zip(rows, files):
        metrics = read_json(tmp_path/'out'/file.name/'metrics.json')
        assert float(row[-4]) == pytest.approx(metrics['AP'], abs=6e-4) and file.name in row[0]
        assert float(row[-2]) == pytest.approx(metrics['latency']['total'], abs=.06)
        assert float(row[-1]) == pytest.approx(file.stat().st_size/1e6, abs=.006)
    (tmp_path/'more').mkdir()
    save_weights(weights, tmp_path/'more/nano.safetensors')
    code, *_ = command(files[0], tmp_path/'more/nano.safetensors', shapes, '--out', tmp_path/'other')
    assert 'several files are called nano.safetensors' in code and not (tmp_path/'other').exists()
    save_weights(replace(weights, notes=dict(bit_depth=12)), tmp_path/'deep.safetensors')
    code, *_ = command(files[0], tmp_path/'deep.safetensors', shapes)
    assert 'trained with bit depths [12, 16]: choose bit_depth (--bit-depth)' in code


def test_weights_without_names_take_those_of_the_data_and_say_so(perfect, tmp_path, command):
    "If their order fits badly, the table suggests another, and with that everything is right"
    weights, names = perfect
    write_shapes(tmp_path/'more', train=0, val=0, test=24, size=96)
    code, printed, _ = command(weights, tmp_path/'more')
    printed = ' '.join(printed.split())
    assert code == 0 and 'the weights have no class names: taking those of the data, in its order' in printed
    assert 'the class names of the weights may be in the wrong order' in printed and 'AP 0.600' in printed
    assert f'names that would fit the weights: {",".join(names)}' in printed
    code, printed, _ = command(weights, tmp_path/'more', '--names', ','.join(names))
    assert code == 0 and 'order' not in printed and 'AP   1.000' in printed


def test_names_of_the_weights_are_read_from_a_file_and_counted(shapes, perfect, tmp_path, command):
    (tmp_path/'names.txt').write_text('\n'.join(perfect[1]))
    code, printed, _ = command(perfect[0], shapes, '--names', tmp_path/'names.txt')
    assert code == 0 and 'AP   1.000' in printed
    code, *_ = command(perfect[0], shapes, '--names', 'disc,cross')
    assert 'unnamed.safetensors: 2 names for 5 classes' in code
    code, *_ = command(shapes/'nano.safetensors', shapes, '--names', 'a,b,c,d,e')
    assert 'are not among' in code and 'If only names differ, use names (--names)' in code


def test_missing_data_stop_an_evaluation_unless_allowed(shapes, perfect, monkeypatch, command):
    "And so do boxes that are odd"
    find = evaluate.find_splits
    def found(**changes):
        def change(read): return replace(read(), **changes)
        def changed(*args, **kwargs): return {k: partial(change, read) for k, read in find(*args).items()}
        monkeypatch.setattr(evaluate, 'find_splits', changed)
    found(stops=['4 of 12 images are missing'])
    code, printed, _ = command(shapes/'nano.safetensors', shapes)
    assert 'yolox_eval: error: missing data: 4 of 12 images are missing' in code and 'AP' not in printed
    code, printed, _ = command(shapes/'nano.safetensors', shapes, '--allow-missing')
    assert code == 0 and '4 of 12 images are missing' in printed and 'AP   ' in printed
    found(notes=['this is a note', 'and another'])
    code, printed, _ = command(shapes/'nano.safetensors', shapes)
    assert code == 0 and 'this is a note' in printed and 'and another' in printed
    odd = Fault('other box layout', '', 'corners', stops=True)
    monkeypatch.setattr(evaluate, 'check', lambda *args: [odd])
    assert 'other box layout: corners' in command(shapes/'nano.safetensors', shapes, '--allow-missing')[0]


def test_data_are_read_with_the_options_of_the_command(shapes, perfect, tmp_path, monkeypatch, command):
    "The bit depth is that of the training unless it is given"
    seen, find = [], evaluate.find_splits
    def note(data, format, images, bit_depth):
        seen.append((format, images, bit_depth))
        return find(data)
    monkeypatch.setattr(evaluate, 'find_splits', note)
    weights = load_weights(shapes/'nano.safetensors')
    save_weights(replace(weights, notes=dict(bit_depth=12)), tmp_path/'deep.safetensors')
    command(shapes/'nano.safetensors', shapes, '--format', 'coco', '--images', tmp_path)
    assert 'a bit depth of 12, as in training' in command(tmp_path/'deep.safetensors', shapes)[1]
    command(tmp_path/'deep.safetensors', shapes, '--bit-depth', 10)
    assert seen == [('coco', str(tmp_path), 16), (None, None, 12), (None, None, 10)]
    assert 'bit_depth=20: must be from 8 to 16' in command(tmp_path/'deep.safetensors', shapes, '--bit-depth', 20)[0]


def test_class_names_are_refused_before_the_network_runs(shapes, tmp_path, monkeypatch):
    weights = load_weights(shapes/'nano.safetensors')
    Image.new('RGB', (50, 50)).save(tmp_path/'a.png')
    object_ = dict(id=1, image_id=1, category_id=1, bbox=[5, 5, 20, 20], area=400, iscrowd=0)
    categories = [dict(id=i + 1, name=BACKGROUND_NAME if i == 2 else f'class {i}') for i in range(5)]
    images = [dict(id=1, file_name='a.png', width=50, height=50)]
    text = json.dumps(dict(images=images, annotations=[object_], categories=categories))
    (tmp_path/'data.json').write_text(text)
    save_weights(replace(weights, names=None), tmp_path/'unnamed.safetensors')
    monkeypatch.setattr('cjm_yolox_pytorch.evaluation.evaluate.detect', lambda *args, **kwargs: pytest.fail('it ran'))
    with pytest.raises(ValueError, match='a class is named .* which is reserved'):
        weights, data, out = (str(tmp_path/name) for name in ('unnamed.safetensors', 'data.json', 'out'))
        yolox_eval(weights, data, out=out, device='cpu')
    assert not (tmp_path/'out').exists()


def test_output_folder_is_checked_before_weights_are_read(shapes, tmp_path):
    "The file of weights does not exist, but the error is about the folder; and nothing is left there"
    (tmp_path/'metrics.csv').touch()
    with pytest.raises(FileExistsError, match='holds a training run'):
        yolox_eval('no.safetensors', str(shapes), out=str(tmp_path))
    before = sorted(shapes.iterdir())
    with pytest.raises(ValueError, match='is in the folder of the data'):
        yolox_eval('no.safetensors', str(shapes), out=f'{shapes}/../{shapes.name}')
    assert sorted(shapes.iterdir()) == before


def write_coco_file(path, images):
    path.write_text(json.dumps(dict(images=images, annotations=[], categories=[dict(id=1, name='disc')])))


def test_bad_input_is_one_line_at_the_shell(shapes, tmp_path, command):
    Image.new('RGB', (50, 50)).save(tmp_path/'a.png')
    write_coco_file(tmp_path/'wrong.json', [dict(id=1, file_name='a.png', width=96, height=96)])
    write_coco_file(tmp_path/'empty.json', [])
    (tmp_path/'run').mkdir()
    (tmp_path/'run/metrics.csv').touch()
    weights = shapes/'nano.safetensors'
    for args, message in [
        ((tmp_path/'no.pth', shapes), 'no.pth: no such file of weights'),
        ((weights, tmp_path/'nowhere'), 'nowhere: no such folder or file of data'),
        ((weights, shapes, '--split', 'vaal'), "has no split 'vaal': choose one of"),
        ((weights, shapes, '--iou', 65), 'iou=65.0: must be from 0 to 1'),
        ((weights, shapes, '--img-size', 0), 'img_size=0: must be at least 1'),
        ((weights, shapes, '--out', tmp_path/'run'), 'run already holds a training run: choose another folder'),
        ((weights, shapes, '--out', f'{shapes}/../{shapes.name}'), 'is in the folder of the data'),
        ((weights, tmp_path/'empty.json'), "empty.json: the split 'all' has no images"),
        ((weights, tmp_path/'wrong.json', '--workers', 1), 'a.png is 50x50 pixels, but its boxes are for 96x96')]:
        code, printed, _ = command(*args)
        assert printed == '' and str(code).startswith('yolox_eval: error: '), code
        assert message in code and '\n' not in code
    with pytest.raises(FileNotFoundError, match='no such file of weights'):
        yolox_eval(str(tmp_path/'no.pth'), str(shapes))
