"Labels that a network contradicts: planted faults come first, good labels are not contradicted."
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_samples import detections, random_detections, random_split, tiny_split
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cjm_yolox_pytorch.data.annotations import build_annotations, fingerprint, relabel
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.evaluation import second_opinion
from cjm_yolox_pytorch.evaluation.disagreement_sheet import draw_disagreements
from cjm_yolox_pytorch.evaluation.disagreements import find_disagreements, KINDS
from cjm_yolox_pytorch.evaluation.doctor import yolox_doctor
from cjm_yolox_pytorch.evaluation.labeling_task import labeling_task
from cjm_yolox_pytorch.evaluation.second_opinion import compare_labels, comparison_lines
from cjm_yolox_pytorch.files.checkpoints import save_weights, Weights
from cjm_yolox_pytorch.model import build_model

NAMES = ['ant', 'bee', 'cat']


def grid_split(seed, images=12):
    "Objects of three classes, each in a cell of its own"
    rng, rows = np.random.default_rng(seed), []
    for i in range(images):
        for cell in rng.permutation(9)[:rng.integers(1, 9)]:
            corner = np.array([cell % 3, cell//3])*100 + rng.uniform(5, 25, 2)
            rows.append((i, rng.integers(3), *corner, *(corner + rng.uniform(30, 65, 2))))
    paths = [f'{i}.jpg' for i in range(images)]
    return build_annotations('grid', NAMES, paths, np.full((images, 2), 300), rows)


def perfect(a, rng, low=.3):
    "Every object at its place, with scores from `low` to 1"
    found = []
    for i in range(len(a)):
        boxes, labels, crowd = a.objects(i)
        rows = np.column_stack([boxes, labels, rng.uniform(low, 1, len(labels))])[~crowd]
        found.append(detections(rows[np.argsort(-rows[:, 5])]))
    return found


def spoil(a, rng, share=.1):
    "The split with some labels removed, renamed or enlarged; the fault of each label, and its image"
    fault = rng.choice(4, len(a.labels), p=[1 - 3*share, share, share, share])
    sides = np.tile(a.boxes[:, 2:] - a.boxes[:, :2], 2)
    boxes = (a.boxes + .3*sides*[-1, -1, 1, 1]*(fault == 3)[:, None]).astype(np.float32)
    labels = np.where(fault == 2, (a.labels + 1) % len(a.names), a.labels)
    kept = fault != 1
    columns = dict(boxes=boxes, labels=labels, crowd=a.crowd, areas=a.areas)
    starts = np.append(0, kept.cumsum())[a.starts]
    return replace(a, starts=starts, **{k: v[kept] for k, v in columns.items()}), fault


def told(a, d):
    "Kind, image and left of the object, rounded"
    return d.kind, int(d.path[:-4]), round(d.box[0])


def planted(a, fault):
    return {(kind, int(a.image[n]), round(float(a.boxes[n, 0])))
        for k, kind in enumerate(KINDS, 1) for n in np.flatnonzero(fault == k)}


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_perfect_labels_are_not_contradicted(seed):
    a = grid_split(seed)
    assert find_disagreements(dict(val=a), dict(val=perfect(a, np.random.default_rng(seed), 0)), least=1e-6) == []


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_planted_faults_are_found_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    a = grid_split(seed)
    b, fault = spoil(a, rng)
    found = find_disagreements(dict(val=b), dict(val=perfect(a, rng, 1.)))
    assert {told(a, d) for d in found} == planted(a, fault) and len(found) == (fault > 0).sum()
    assert all(.5 <= d.suspicion <= 1 for d in found)


def with_noise(d, rng):
    "Boxes that are a little off, and three detections of nothing"
    corner = torch.from_numpy(rng.uniform(0, 250, (3, 2))).float()
    sides = (d.boxes[:, 2:] - d.boxes[:, :2]).repeat(1, 2)
    moved = d.boxes + sides*torch.from_numpy(rng.normal(0, .03, d.boxes.shape)).float()
    labels, scores = torch.from_numpy(rng.integers(3, size=3)), torch.from_numpy(rng.uniform(0, .7, 3)).float()
    parts = (moved, torch.cat([corner, corner + 40], 1)), (d.scores, scores), (d.labels, labels)
    return Detections(*map(torch.cat, parts))


def test_planted_faults_come_first_with_an_imperfect_network():
    rng = np.random.default_rng(0)
    a = grid_split(0, images=100)
    b, fault = spoil(a, rng, .03)
    found = [with_noise(d, rng) for d in perfect(a, rng)]
    worst = find_disagreements(dict(val=b), dict(val=found))[:20]
    places = {(kind, image) for kind, image, _ in planted(a, fault)}
    assert len(worst) == 20 and sum(told(a, d)[:2] in places for d in worst) >= 17
    assert {d.kind for d in worst} == {*KINDS}


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_order_of_images_does_not_matter(seed, other):
    a = random_split(seed, 3)
    found = random_detections(a, seed)
    order = np.random.default_rng(other).permutation(len(a))
    whole = find_disagreements(dict(val=a), dict(val=found), least=0)
    assert find_disagreements(dict(val=a.take(order)), dict(val=[found[i] for i in order]), least=0) == whole
    assert [d.suspicion for d in whole] == sorted((d.suspicion for d in whole), reverse=True)
    assert all(0 <= d.suspicion <= 1 for d in whole)


def test_the_same_detection_is_as_suspicious_without_a_label_as_with_one_that_explains_nothing():
    usual = [(0, 0, 50, 50, 0)], [(0, 0, 50, 50, 0, s) for s in (.5, .6, .8)]
    here = (100., 100., 200., 200.)
    def suspicion(*labels):
        objects = [(*here, 0), *usual[0]] if not labels else [*labels, *usual[0]]
        a = build_annotations('x', NAMES, ['0.jpg'], [(300, 300)], [(0, c, *b) for *b, c in objects])
        found = detections([(*here, 1, .7), (0, 0, 50, 50, 0, .6)])
        return find_disagreements(dict(val=a), dict(val=[found]), least=0)[0]
    wrong, loose = suspicion((*here, 0)), suspicion((100, 100, 200, 148, 1))
    missing = suspicion((250, 250, 290, 290, 0))
    assert [d.kind for d in (missing, wrong, loose)] == [*KINDS]
    assert missing.suspicion == wrong.suspicion == loose.suspicion


def test_two_classes_on_one_object_are_one_missing_label():
    a = build_annotations('x', NAMES, ['0.jpg'], [(300, 300)], [(0, 0, 0, 0, 50, 50)])
    found = detections([(100, 100, 200, 200, 1, .9), (101, 100, 200, 200, 2, .8), (0, 0, 50, 50, 0, .7)])
    [d] = find_disagreements(dict(val=a), dict(val=[found]))
    assert (d.kind, d.name, d.label) == ('missing label', 'bee', None)


def test_crowds_contradict_nothing():
    rows = [(0, 1, 100, 100, 290, 290, 1), (0, 0, 0, 0, 50, 50, 0)]
    a = build_annotations('x', NAMES, ['0.jpg'], [(300, 300)], rows)
    found = detections([(120, 120, 160, 160, 1, .9), (200, 200, 280, 280, 2, .9), (0, 0, 50, 50, 0, .7)])
    assert find_disagreements(dict(val=a), dict(val=[found]), least=0) == []
    assert len(find_disagreements(dict(val=replace(a, crowd=a.crowd & False)), dict(val=[found]), least=0)) == 2


def test_labels_beyond_the_border_are_cut():
    a = build_annotations('x', NAMES, ['0.jpg'], [(100, 100)], [(0, 0, -100, 20, 50, 80)])
    assert find_disagreements(dict(val=a), dict(val=[detections([(0, 20, 50, 80, 0, .9)])]), least=1e-6) == []


def test_images_without_labels_and_splits_without_images():
    a = build_annotations('x', NAMES, ['0.jpg', '1.jpg'], [(100, 100)]*2, [])
    found = [detections([(0, 20, 50, 80, 0, .9)]), detections([])]
    none = a.take(np.zeros(0, dtype=int))
    [d] = find_disagreements(dict(train=none, val=a), dict(train=[], val=found))
    assert (d.split, d.kind) == ('val', 'missing label') and d.suspicion == pytest.approx(.9)
    assert find_disagreements(dict(train=none), dict(train=[])) == []


# A network's opinion

@pytest.fixture(scope='module')
def folder(draw_shapes): return draw_shapes(train=10, val=6, test=0, size=96)


@pytest.fixture(scope='module')
def splits(folder): return {split: read() for split, read in find_splits(folder).items()}


@pytest.fixture(scope='module')
def weights(splits):
    torch.manual_seed(0)
    state = build_model('yolox_nano', 5, pretrained=False).state_dict()
    return Weights(state, 'yolox_nano', 5, (0., 0., 0.), (1., 1., 1.), names=splits['train'].names, size=96)


@pytest.fixture
def oracle(monkeypatch, splits):
    "A network that finds everything, as it numbers the classes `own`"
    def install(own, truth=splits):
        by_path = {path: a.objects(i) for a in truth.values() for i, path in enumerate(a.paths)}
        names = next(iter(truth.values())).names
        def detect(model, a, spec, **options):
            found = []
            for path in a.paths:
                boxes, labels, _ = by_path[path]
                rows = [(*b, own.index(names[c]), .9) for b, c in zip(boxes, labels) if names[c] in own]
                found.append(detections(rows))
            return found
        monkeypatch.setattr(second_opinion, 'detect', detect)
        monkeypatch.setattr(second_opinion, 'prepare_network', lambda weights, device: (weights, None))
        return own
    return install


def test_classes_are_compared_by_name(splits, weights, oracle):
    own = oracle(['moon', *weights.names[::-1]])
    c = compare_labels(splits, replace(weights, names=own, num_classes=6), 'cpu')
    assert c.disagreements == []
    assert c.remarks == ['detections not compared: those of 1 class that the data does not have (moon)']


def test_splits_may_number_classes_differently(splits, weights, oracle):
    oracle(weights.names)
    other = dict(splits, val=relabel(splits['val'], weights.names[::-1]))
    assert compare_labels(other, weights, 'cpu').disagreements == []


def test_classes_that_the_weights_do_not_have_are_said(splits, weights, oracle):
    own = oracle(weights.names[:3])
    c = compare_labels(splits, replace(weights, names=own, num_classes=3), 'cpu')
    lost = sum(int(a.counts[3:].sum()) for a in splits.values())
    assert c.disagreements == []
    assert f'labels not compared: {lost} objects of 2 classes that the weights do not have (star, cross)' in c.remarks


def test_weights_without_names(splits, weights, oracle):
    oracle(weights.names)
    c = compare_labels(splits, replace(weights, names=None), 'cpu')
    assert c.disagreements == [] and 'the weights have no class names: taking those of the data' in c.remarks[0]
    message = r'7 classes without names, but the data has 5: disc.* Name those .* with names \(--names\)'
    with pytest.raises(ValueError, match=message):
        compare_labels(splits, replace(weights, names=None, num_classes=7), 'cpu')


def test_no_class_in_common(splits, weights):
    with pytest.raises(ValueError, match=r'no class in common: those of the data are disc, .* use names \(--names\)'):
        compare_labels(splits, replace(weights, names=[*'abcde']), 'cpu')


def test_wrong_order_of_names_is_suspected(splits, weights, oracle):
    oracle(weights.names)
    c = compare_labels(splits, replace(weights, names=[*weights.names[1:], weights.names[0]]), 'cpu')
    text = '\n'.join(c.remarks)
    assert 'the weights find only' in text and 'their classes may be in another order' in text


@pytest.mark.parametrize('name, expected', [('train', True), ('other', False)])
def test_training_images_are_named(name, expected, splits, weights, oracle):
    oracle(weights.names)
    notes = dict(training='train', fingerprint=fingerprint(splits['train']) if expected else '0')
    text = '\n'.join(compare_labels(splits, replace(weights, notes=notes), 'cpu').remarks)
    assert ('the weights were trained on train: they learned its labels' in text) == expected


def test_images_that_cannot_be_read_are_left_out(splits, weights):
    c = compare_labels(splits, weights, 'cpu', skip=splits['train'].paths[:3].tolist())
    assert len(c.splits['train']) == 7 and len(c.splits['val']) == 6


@pytest.mark.slow
def test_exported_networks_have_an_opinion(splits, weights, tmp_path):
    pytest.importorskip('onnxruntime')
    from cjm_yolox_pytorch.deploy.export import export_weights
    from cjm_yolox_pytorch.detection.detector import load_network
    export_weights(weights, tmp_path/'a.onnx')
    a, b = (compare_labels(splits, n, 'cpu', least=0) for n in (weights, load_network(tmp_path/'a.onnx')))
    assert [d.path for d in a.disagreements] == [d.path for d in b.disagreements]


# Pictures, and the command

def test_sheet_shows_each_kind(tmp_path):
    a = tiny_split(tmp_path, [(60, 80)]*3, [[(5, 5, 40, 40, 0)], [(5, 5, 40, 40, 0)], [(5, 5, 78, 58, 1)]], ['a$', '猫'])
    found = [detections([(45, 10, 75, 40, 1, .9), (5, 5, 40, 40, 0, .8)]), detections([(5, 5, 40, 40, 1, .9)]),
        detections([(5, 5, 40, 40, 1, .8)])]
    disagreements = find_disagreements(dict(val=a), dict(val=found), least=.05)
    assert {d.kind for d in disagreements} == {*KINDS}
    draw_disagreements(dict(val=a), disagreements*20, tmp_path/'sheet.png')
    with Image.open(tmp_path/'sheet.png') as image: assert image.width == 1200 and 1000 < image.height <= 1600


def run(monkeypatch, capsys, *args): # As in a shell: exit status, output and errors
    monkeypatch.setattr(sys, 'argv', ['yolox_doctor', *map(str, args)])
    status = 0
    try: yolox_doctor()
    except SystemExit as e: status = e.args[0]
    return status, *capsys.readouterr()


@pytest.fixture
def file(weights, tmp_path):
    save_weights(weights, tmp_path/'w.safetensors')
    return tmp_path/'w.safetensors'


def test_doctor_compares_and_its_verdict_stays(folder, splits, file, oracle, tmp_path, monkeypatch, capsys):
    spoiled = {s: replace(a, boxes=a.boxes + 25) for s, a in splits.items()}
    oracle(splits['train'].names, spoiled)
    status, text, _ = run(monkeypatch, capsys, folder, '--weights', file, '--device', 'cpu', '--out', tmp_path/'out')
    assert status == 0 and text.endswith('\n\nready to train\n') and 'likely missing labels: ' in text
    paths = str(folder), str(tmp_path) # Never broken
    assert all(len(line) <= 80 for line in text.splitlines() if not any(path in line for path in paths))
    content = json.loads((tmp_path/'out/doctor.json').read_text())['comparison']
    assert content['counts']['missing label'] > 5 and content['disagreements'][0]['suspicion'] > .5
    assert (tmp_path/'out/disagreements.png').stat().st_size > 10_000
    status, text, _ = run(monkeypatch, capsys, folder, '--weights', file, '--device', 'cpu', '--json')
    assert status == 0 and json.loads(text)['comparison']['counts'] == content['counts']


def test_doctor_leaves_broken_images_out(file, tmp_path, monkeypatch, capsys):
    write_shapes(tmp_path/'data', train=6, val=3, test=0, size=64)
    (tmp_path/'data/train/00002.png').write_bytes(b'no picture')
    status, text, _ = run(monkeypatch, capsys, tmp_path/'data', '--weights', file, '--device', 'cpu')
    assert status == 3 and 'labels that the weights contradict' in text and 'not ready' in text


@pytest.mark.parametrize('options, message', [
    (['--weights', 'nowhere.safetensors'], 'nowhere.safetensors'),
    (['--names', 'a,b'], '--names: for the weights to compare with; give --weights, too'),
    (['--pixels', 'rgb1', '--device', 'cpu'], '--pixels and --device: for the weights to compare with'),
    (['--weights', 'FILE', '--names', 'a,b'], '5'),
    (['--weights', 'FILE', '--pixels', 'rgb1'], 'is a file of weights, not an exported network'),
    (['--weights', 'FILE', '--device', 'abacus'], "device='abacus' does not work here")])
def test_bad_options(options, message, folder, file, tmp_path, monkeypatch, capsys):
    options = [str(file) if o == 'FILE' else o for o in options]
    status, text, _ = run(monkeypatch, capsys, folder, '--out', tmp_path/'out', *options)
    assert 'yolox_doctor: error: ' in status and message in status
    assert not (tmp_path/'out').exists()


def test_lines_are_short(splits, weights, oracle):
    oracle(weights.names[:1])
    c = compare_labels(splits, replace(weights, names=['disc'], num_classes=1), 'cpu')
    assert max(map(len, comparison_lines(c))) <= 80


def test_another_bit_depth_is_said(splits, weights, oracle):
    oracle(weights.names)
    deep = {s: replace(a, bit_depth=12) for s, a in splits.items()}
    notes = dict(bit_depth=12)
    assert compare_labels(deep, replace(weights, notes=notes), 'cpu').remarks == []
    [remark] = compare_labels(splits, replace(weights, notes=notes), 'cpu').remarks
    assert remark.endswith('give --bit-depth 12')


# The task for a labeling tool

def test_the_task_is_the_labels_as_the_network_suggests(folder, splits, file, oracle, tmp_path, monkeypatch, capsys):
    "With an oracle, reading it back gives the true labels"
    rng = np.random.default_rng(0)
    spoiled = {s: spoil(a, rng, .15)[0] for s, a in splits.items()}
    own = oracle(splits['train'].names)
    by_path = {path: a.objects(i) for a in splits.values() for i, path in enumerate(a.paths)}
    c = compare_labels(spoiled, Weights({}, 'yolox_nano', 5, (0., 0., 0.), (1., 1., 1.), names=own, size=96))
    files, said = labeling_task(c.splits, c.disagreements)
    assert said[-1].endswith(f'by names below {folder}')
    (tmp_path/'tasks').mkdir()
    (tmp_path/'tasks/tasks.json').write_text(files['labels_to_check/tasks.json'])
    read = find_splits(tmp_path/'tasks', images=str(folder))['all']()
    assert [*read.paths] == [*dict.fromkeys(d.path for d in c.disagreements)]
    for i, path in enumerate(read.paths):
        boxes, labels, _ = read.objects(i)
        true_boxes, true_labels, _ = by_path[path]
        order, true = (np.lexsort(np.round(b[:, ::-1]).T) for b in (boxes, true_boxes))
        assert len(boxes) == len(true_boxes) and np.abs(boxes[order] - true_boxes[true]).max() < 15
        assert [read.names[n] for n in labels[order]] == [splits['train'].names[n] for n in true_labels[true]]


def test_doctor_writes_the_task(folder, splits, file, oracle, tmp_path, monkeypatch, capsys):
    oracle(splits['train'].names, {s: replace(a, boxes=a.boxes + 25) for s, a in splits.items()})
    options = folder, '--weights', file, '--device', 'cpu', '--out', tmp_path/'out'
    for more in ([], ['--overwrite']):
        status, text, _ = run(monkeypatch, capsys, *options, *more)
        assert status == 0 and 'labels_to_check/tasks.json has ' in text and str(folder) in text
    tasks = json.loads((tmp_path/'out/labels_to_check/tasks.json').read_text())
    worst = json.loads((tmp_path/'out/doctor.json').read_text())['comparison']['disagreements'][0]
    assert worst['path'].endswith(tasks[0]['data']['image'].partition('d=')[2])
    assert {p.name for p in (tmp_path/'out/labels_to_check').iterdir()} == {'tasks.json', 'label_config.xml'}


def test_an_edited_task_survives_another_run(folder, splits, file, oracle, tmp_path, monkeypatch, capsys):
    oracle(splits['train'].names, {s: replace(a, boxes=a.boxes + 25) for s, a in splits.items()})
    task = tmp_path/'out/labels_to_check/tasks.json'
    task.parent.mkdir(parents=True)
    task.write_text('edited')
    options = folder, '--weights', file, '--device', 'cpu', '--out', tmp_path/'out'
    said, *_ = run(monkeypatch, capsys, *options)
    assert f'label files that exist: {task}. Choose another --out' in said
    assert task.read_text() == 'edited' and not (tmp_path/'out/doctor.json').exists()
    assert run(monkeypatch, capsys, *options[:1], *options[-2:])[0] == 0 and task.read_text() == 'edited'
    assert run(monkeypatch, capsys, *options, '--overwrite')[0] == 0 and task.read_text() != 'edited'


def test_overwrite_is_for_a_task_and_pictures_do_not_become_data(folder, file, tmp_path, monkeypatch, capsys):
    said = run(monkeypatch, capsys, folder, '--overwrite')[0]
    assert 'it is for the labeling task of --weights and --out' in said
    (tmp_path/'images').mkdir()
    said = run(monkeypatch, capsys, folder, '--images', tmp_path/'images', '--out', tmp_path/'images/out')[0]
    assert 'is in the folder of the data' in said and not (tmp_path/'images/out').exists()


def test_an_image_of_two_splits_is_one_task_with_the_labels_of_the_first(tmp_path):
    a = tiny_split(tmp_path, [(60, 80)], [[(5, 5, 40, 40, 0)]], ['a'])
    splits = dict(train=a, other=a.take([]), val=replace(a, boxes=a.boxes + 10))
    found = {s: [detections([(45, 10, 75, 40, 0, .9)])]*len(a) for s, a in splits.items()}
    files, _ = labeling_task(splits, find_disagreements(splits, found))
    [task] = json.loads(files['labels_to_check/tasks.json'])
    assert [round(r['value']['x']*.8) for r in task['predictions'][0]['result']] == [5, 45]


def test_names_that_tools_cannot_hold_leave_the_report(splits):
    names = [' disc', *splits['train'].names[1:]]
    renamed = {s: replace(a, names=names) for s, a in splits.items()}
    found = {s: [detections([(5, 5, 60, 60, 1, .9)])]*len(a) for s, a in splits.items()}
    oddly = find_disagreements(renamed, found)
    files, [said] = labeling_task(renamed, oddly)
    assert files == {} and 'no labeling task is written: class names that are empty, or begin' in said


def test_crowds_are_not_in_the_task_and_photos_on_their_side_are_left_out(tmp_path):
    a = tiny_split(tmp_path, [(60, 80)]*2, [[(5, 5, 40, 40, 0)]]*2, ['a'])
    a = replace(a, crowd=np.array([True, False]), sizes=np.array([[60, 80], [80, 60]]))
    found = [detections([(45, 10, 75, 40, 0, .9)]), detections([(5, 42, 40, 79, 0, .9)])]
    files, said = labeling_task(dict(val=a), find_disagreements(dict(val=a), dict(val=found)))
    [task] = json.loads(files['labels_to_check/tasks.json'])
    assert len(task['predictions'][0]['result']) == 1
    assert said[0].startswith('1 image not in the labeling task') and '1 crowd region left out' in said[1]
