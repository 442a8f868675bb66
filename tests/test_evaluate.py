"Figures against COCO's own program and against slow counting, pictures of odd data, and the command with all its options."
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.data.annotations import Annotations
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.evaluation.metrics import BACKGROUND, METRICS, VOC_METRICS, coco_results, _count, average_precision, confusion_matrix, match, voc_average_precision
from cjm_yolox_pytorch.data.coco import coco_truth
from cjm_yolox_pytorch.evaluation.evaluate import detect, yolox_eval
from cjm_yolox_pytorch.evaluation.report import report, table
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.model import NORM_STATS, build_model
from cjm_yolox_pytorch.data.shapes import write_shapes


def official(truth, found):
    "What pycocotools says of COCO's dictionaries: the twelve numbers, and AP by category id"
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    with redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        # It says whether an annotation is ignored in the annotation itself, so it gets its own
        gt.dataset = json.loads(json.dumps(truth))
        dt.dataset = dict(images=gt.dataset['images'], categories=gt.dataset['categories'],
                          annotations=[dict(r, id=n + 1, area=r['bbox'][2]*r['bbox'][3], iscrowd=0) for n, r in enumerate(found)])
        gt.createIndex(); dt.createIndex()
        run = COCOeval(gt, dt, 'bbox')
        run.evaluate(); run.accumulate(); run.summarize()
    precision = run.eval['precision'][:, :, :, 0, -1]
    return run.stats, {c: precision[:, :, k].mean() for k, c in enumerate(run.params.catIds)}


def assert_same_as_official(metrics, names, stats, of_class):
    "`of_class` by name or by number; -1 there is NaN here"
    ours = np.nan_to_num([metrics[k] for k in METRICS], nan=-1)
    np.testing.assert_allclose(ours, stats, rtol=0, atol=1e-6)
    for name, theirs in zip(names, of_class.values(), strict=True):
        assert np.nan_to_num(metrics['classes'][name]['AP'], nan=-1) == pytest.approx(theirs, abs=1e-6), name


def made_up(annotations, seed, spread=.1, decimals=6, crowded=0):
    "Detections of objects, moved and renamed a little, and of nothing; none at all in some images"
    rng, C, found = np.random.default_rng(seed), len(annotations.names), []
    for i, (height, width) in enumerate(annotations.sizes):
        boxes, labels, _ = annotations.objects(i)
        again = np.repeat(np.arange(len(boxes)), rng.integers(0, 4, len(boxes)))
        near = boxes[again] + rng.normal(0, spread, (len(again), 4))*np.tile(boxes[again, 2:] - boxes[again, :2], 2)
        corner = rng.uniform(0, .8, (rng.poisson(5) + crowded, 2)) * [width, height]
        boxes = np.concatenate([near, np.concatenate([corner, corner + rng.uniform(.05, .5, corner.shape)*[width, height]], axis=1)])
        labels = np.append(np.where(rng.uniform(size=len(again)) < .1, rng.integers(C, size=len(again)), labels[again]), rng.integers(C, size=len(corner)) * (crowded == 0))
        boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4) # Left before right
        count = len(boxes) * (rng.uniform() > .15)
        scores = rng.uniform(0, 1, len(boxes)).round(decimals)
        order = np.argsort(-scores, kind='stable')[:int(count)]
        found.append(Detections(*(torch.from_numpy(a[order]) for a in (boxes.astype(np.float32), scores.astype(np.float32), labels))))
    return found


def with_crowds(annotations, seed):
    crowd = np.random.default_rng(seed).uniform(size=len(annotations.labels)) < .2
    return replace(annotations, crowd=annotations.crowd | crowd)


@pytest.fixture(scope='module')
def coco(shared): return read_split(shared/'data/coco_ccby', 'all')


@pytest.fixture(scope='module')
def bccd(shared): return read_split(shared/'data/bccd', 'test')


@pytest.fixture(scope='module')
def nano(shared):
    weights = load_weights(shared/'weights/yolox_nano_coco.pth')
    return build_model(weights.model_type, weights.num_classes, pretrained=weights).eval(), dict(mean=weights.mean, std=weights.std)


@pytest.fixture(scope='module')
def nano_detections(coco, nano): return detect(nano[0], coco, 416, **nano[1])


def test_real_detections_as_the_official_program_counts_them(shared, coco, nano, nano_detections):
    "From the data set's own file, whose images and classes are numbered with gaps"
    file = json.loads((shared/'data/coco_ccby/annotations.json').read_text())
    images = {image['file_name']: image['id'] for image in file['images']}
    categories = {c['name']: c['id'] for c in file['categories']}
    several = detect(nano[0], coco, 416, **nano[1], multi_label=True)
    for found in (nano_detections, several):
        rows = [dict(r, image_id=images[Path(coco.paths[r['image_id']]).name], category_id=categories[coco.names[r['category_id']]]) for r in coco_results(found)]
        stats, of_class = official(file, rows)
        assert_same_as_official(average_precision(coco, found), [c['name'] for c in sorted(file['categories'], key=lambda c: c['id'])], stats, of_class)
    assert sum(map(len, several)) > sum(map(len, nano_detections)) and average_precision(coco, several)['AP'] > average_precision(coco, nano_detections)['AP']


CASES = dict(
    random=dict(), # Anything
    ties=dict(decimals=1), # Ten scores for everything
    many=dict(crowded=150), # More than a hundred of one class in an image
    exact=dict(spread=0)) # The truth among others, three times over


@pytest.mark.parametrize('name, case', CASES.items())
@pytest.mark.parametrize('data', ['bccd', 'coco'])
def test_made_up_detections_as_the_official_program_counts_them(data, name, case, request):
    annotations = request.getfixturevalue(data)
    for seed, truth in enumerate([annotations, with_crowds(annotations, 0)]):
        found = made_up(truth, seed, **case)
        assert min(map(len, found)) == 0
        if name == 'many': assert max(np.bincount(d.labels).max() for d in found if len(d)) > 100
        assert_same_as_official(average_precision(truth, found), truth.names, *official(coco_truth(truth), coco_results(found)))


def test_classes_without_detections_or_objects(bccd):
    nothing = [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())]*len(bccd)
    rare = replace(bccd, names=[*bccd.names, 'yeast'])
    some = [Detections(d.boxes[d.labels != 1], d.scores[d.labels != 1], d.labels[d.labels != 1]) for d in made_up(rare, 3)]
    for truth, found in [(bccd, nothing), (rare, some)]:
        assert_same_as_official(average_precision(truth, found), truth.names, *official(coco_truth(truth), coco_results(found)))


def slow_voc(truth, found, c):
    "VOC's two average precisions of class `c`, as its development kit describes them, in exact fractions"
    rows = [(float(d.scores[n]), i, n) for i, d in enumerate(found) for n in range(len(d)) if d.labels[n] == c]
    objects = {i: [(box, crowd) for box, label, crowd in zip(*truth.objects(i)) if label == c] for i in range(len(truth))}
    count, used, right = sum(not crowd for rows in objects.values() for _, crowd in rows), set(), []
    for _, i, n in sorted(rows, key=lambda r: (-r[0], r[1])):
        best, chosen = 0., None
        x1, y1, x2, y2 = map(float, found[i].boxes[n])
        for k, (box, _) in enumerate(objects[i]):
            a1, b1, a2, b2 = map(float, box)
            w, h = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
            overlap = w*h/((x2 - x1)*(y2 - y1) + (a2 - a1)*(b2 - b1) - w*h) if w > 0 and h > 0 else 0.
            if overlap > best: best, chosen = overlap, k
        if best >= .5 and objects[i][chosen][1]: continue # As a difficult one
        right.append(best >= .5 and (i, chosen) not in used)
        if best >= .5: used.add((i, chosen))
    if not count: return float('nan'), float('nan')
    points = [(Fraction(sum(right[:n + 1]), count), Fraction(sum(right[:n + 1]), n + 1)) for n in range(len(right))]
    def height(recall): return max((p for r, p in points if r >= recall), default=Fraction(0))
    steps = sorted({r for r, _ in points} | {Fraction(0)})
    return float(sum((b - a)*height(b) for a, b in zip(steps, steps[1:]))), float(sum(height(Fraction(t, 10)) for t in range(11))/11)


@pytest.mark.parametrize('decimals', [6, 1])
def test_voc_against_slow_counting(bccd, coco, decimals):
    part = replace(bccd, paths=bccd.paths[:30], sizes=bccd.sizes[:30], starts=bccd.starts[:31], **{k: getattr(bccd, k)[:bccd.starts[30]] for k in ('boxes', 'labels', 'crowd', 'areas')})
    for truth in (part, with_crowds(part, 1), coco):
        found = made_up(truth, 5, decimals=decimals)
        metrics = voc_average_precision(truth, found)
        slow = np.array([slow_voc(truth, found, c) for c in range(len(truth.names))])
        fast = [[metrics['classes'][n][k] for k in VOC_METRICS] for n in truth.names]
        np.testing.assert_allclose(fast, slow, atol=1e-12)
        np.testing.assert_allclose([metrics[k] for k in VOC_METRICS], np.nanmean(slow, axis=0), atol=1e-12)


@pytest.mark.parametrize('seed, score', [(0, .25), (1, .6), (None, .25)])
def test_right_ones_are_those_that_coco_counts(coco, nano_detections, seed, score):
    found = nano_detections if seed is None else made_up(coco, seed)
    outcomes = [match(*coco.objects(i), d, score) for i, d in enumerate(found)]
    sure = [Detections(d.boxes[d.scores > score], d.scores[d.scores > score], d.labels[d.scores > score]) for d in found]
    recall, (_, recalls, there) = np.full(80, np.nan), _count(coco, sure)
    recall[there] = recalls[0, :, 0, -1] # At an IoU of .5, with up to a hundred detections
    matrix = confusion_matrix(coco, found, outcomes)
    objects = np.bincount(coco.labels[~coco.crowd], minlength=80)
    np.testing.assert_allclose(matrix.diagonal()[:-1]/np.where(objects, objects, np.nan), recall, atol=1e-12)
    assert matrix[:-1].sum(1).tolist() == objects.tolist() and matrix[-1, -1] == 0
    in_crowds = sum(len(d) for d in sure) - matrix[:, :-1].sum()
    assert 0 <= in_crowds <= (30 if seed is None else 60)
    assert all(not (o.right & o.confused).any() and not (o.false & (o.objects >= 0)).any() for o in outcomes)


def tiny(folder, sizes, objects, names):
    "Annotations of grey images of `sizes` (height, width), with `objects` (x1, y1, x2, y2, label) for each"
    paths = [Path(folder)/f'{i}.png' for i in range(len(sizes))]
    for path, size in zip(paths, sizes): Image.fromarray(np.full((*size, 3), 120, dtype=np.uint8)).save(path)
    rows = np.array([row for rows in objects for row in rows], dtype=np.float32).reshape(-1, 5)
    return Annotations(names, paths, np.array(sizes), np.cumsum([0, *map(len, objects)]), rows[:, :4], rows[:, 4].astype(int), np.zeros(len(rows), dtype=bool), np.full(len(rows), 100, dtype=np.float32))


def found_of(rows): # (x1, y1, x2, y2, label, score)
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 5], rows[:, 4].long())


REPORT = {'metrics.json', 'precision_recall.png', 'confusion.png', 'worst.png', 'detections.png'}


def test_reports_of_odd_data(tmp_path):
    one, names = [(1, 1, 9, 9, 0)], ['cat', 'a very long name of a class of things that somebody wanted to find']
    cases = [([(20, 30)], [one], [[]], names[:1]), # One image, one class, nothing found
             ([(20, 30)], [[]], [[(1, 1, 9, 9, 0, .9)]], names), # Nothing there
             ([(20, 30)], [[]], [[]], names), # Neither
             ([(300, 20), (20, 300), (1, 1)], [one, [(0, 0, 300, 20, 1)], []], [[(1, 1, 9, 9, 1, .9)], [], []], names)] # Tall, wide, and a point
    for n, (sizes, objects, found, names) in enumerate(cases):
        annotations, found = tiny(tmp_path, sizes, objects, names), list(map(found_of, found))
        metrics = report(annotations, found, tmp_path/f'{n}')
        assert {p.name for p in (tmp_path/f'{n}').iterdir()} == REPORT
        assert max(map(len, table(metrics))) <= 80 and not any('nan' in line for line in table(metrics))
        json.loads((tmp_path/f'{n}/metrics.json').read_text(), parse_constant=pytest.fail)
    use = metrics['in_use']
    assert (use['right'], use['confused'], use['missed'], use['false']) == (0, 1, 1, 0) and metrics['confusion'] == {'cat': {names[1]: 1}, names[1]: {BACKGROUND: 1}}


def test_the_worst_come_first(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr('cjm_yolox_pytorch.evaluation.report._draw_pairs', lambda annotations, chosen, *args, **kwargs: drawn.append(list(chosen)))
    there = [(1, 1, 9, 9, 0), (11, 1, 19, 9, 0)]
    annotations = tiny(tmp_path, [(20, 30)]*4, [there]*4, ['cat'])
    good = [(*row, .9) for row in there]
    report(annotations, list(map(found_of, [good, good[:1], [], [*good, (1, 11, 9, 19, 0, .9)]])), tmp_path/'out')
    assert drawn[0] == [2, 1, 3, 0]


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    write_shapes(folder, train=4, val=6, test=8, size=96)
    torch.manual_seed(0)
    model = build_model('yolox_nano', 5, pretrained=False)
    for module in model.modules(): # Norm layers that have seen something, and scores as far apart as those of a trained network
        if isinstance(module, torch.nn.BatchNorm2d): module.momentum = None
    with torch.no_grad(): model(torch.randn(8, 3, 96, 96))
    for convs in (model.bbox_head.multi_level_conv_obj, model.bbox_head.multi_level_conv_cls):
        for conv in convs: conv.bias.data.fill_(-1); conv.weight.data.mul_(3)
    save_weights(Weights(model.state_dict(), 'yolox_nano', 5, **NORM_STATS['yolox_nano'], names=read_split(folder, 'val').names, size=96), folder/'nano.safetensors')
    return folder


def command(*args):
    return subprocess.run([Path(sys.executable).with_name('yolox_eval'), *map(str, args), '--device', 'cpu'], capture_output=True, text=True, env={**os.environ, 'COLUMNS': '80'})


def test_the_command(shapes, tmp_path):
    done = command(shapes/'nano.safetensors', shapes, '--out', tmp_path/'out', '--working_conf', .2)
    assert done.returncode == 0, done.stderr
    assert 'yolox_nano at 96 on test: 8 images' in done.stdout and all(len(line) <= 80 for line in done.stdout.splitlines() if str(tmp_path) not in line)
    assert {p.name for p in (tmp_path/'out').iterdir()} == REPORT | {'truth.json', 'detections.json'}
    metrics = json.loads((tmp_path/'out/metrics.json').read_text())
    assert set(metrics) == {*METRICS, *VOC_METRICS, 'classes', 'in_use', 'confusion', 'split', 'size', 'latency'}
    assert set(metrics['classes']['disc']) == {*METRICS, *VOC_METRICS, 'objects', 'precision', 'recall'}
    assert metrics['in_use']['score'] == .2 and metrics['in_use']['false'] > 0 and metrics['split'] == 'test' and 0 < metrics['latency']['network'] < metrics['latency']['total']
    found, truth = (json.loads((tmp_path/f'out/{name}.json').read_text()) for name in ('detections', 'truth'))
    stats, _ = official(truth, found)
    np.testing.assert_allclose([-1 if metrics[k] is None else metrics[k] for k in METRICS], stats, atol=1e-6)


def evaluate(shapes, out, **options):
    with redirect_stdout(io.StringIO()) as printed: yolox_eval(str(shapes/'nano.safetensors'), str(shapes), out=str(out), device='cpu', **options)
    return printed.getvalue(), json.loads((out/'detections.json').read_text()), json.loads((out/'metrics.json').read_text())


def test_the_options_do_something(shapes, tmp_path, monkeypatch):
    for name in ('plot_precision_recall', 'plot_confusion', 'show_worst', 'show_detections'): monkeypatch.setattr(f'cjm_yolox_pytorch.evaluate.{name}', lambda *args, **kwargs: None) # Faster
    printed, found, _ = evaluate(shapes, tmp_path, split='val', size=64)
    assert 'yolox_nano at 64 on val: 6 images' in printed and len({r['image_id'] for r in found}) == 6
    _, surer, metrics = evaluate(shapes, tmp_path, split='val', size=64, conf=.3)
    assert 0 < len(surer) < len(found) and min(r['score'] for r in surer) > .3 and metrics['in_use']['score'] == .3
    assert len(evaluate(shapes, tmp_path, split='val', size=64, max_detections=2)[1]) == 2*6
    assert len(evaluate(shapes, tmp_path, split='val', size=64, iou=.1)[1]) < len(found)
    several = evaluate(shapes, tmp_path, split='val', size=64, multi_label=True, max_detections=3000)[1]
    assert len(several) > len(evaluate(shapes, tmp_path, split='val', size=64, max_detections=3000)[1])


def test_bad_input_is_one_line_at_the_shell(shapes, tmp_path):
    Image.new('RGB', (50, 50)).save(tmp_path/'a.png')
    image = dict(id=1, file_name='a.png', width=96, height=96)
    (tmp_path/'wrong.json').write_text(json.dumps(dict(images=[image], annotations=[], categories=[dict(id=1, name='disc')])))
    (tmp_path/'empty.json').write_text(json.dumps(dict(images=[], annotations=[], categories=[dict(id=1, name='disc')])))
    weights = shapes/'nano.safetensors'
    for args, message in [((tmp_path/'no.pth', shapes), 'no.pth: no such file of weights'),
                          ((weights, tmp_path/'nowhere'), 'nowhere: no such folder or file of data'),
                          ((weights, shapes, '--split', 'vaal'), "has no split 'vaal': choose one of"),
                          ((weights, shapes, '--iou', 65), 'iou=65.0: from 0 to 1 is possible'),
                          ((weights, tmp_path/'empty.json'), "empty.json: there are no images in the split 'all'"),
                          ((weights, tmp_path/'wrong.json', '--workers', 1), 'a.png is 50x50 pixels, but its boxes are for 96x96')]:
        done = command(*args)
        assert done.returncode == 1 and done.stdout == ''
        said = done.stderr.strip().splitlines()[-1]
        assert said.startswith('yolox_eval: error: ') and message in said and 'Traceback' not in done.stderr, done.stderr
    with pytest.raises(FileNotFoundError, match='no such file of weights'): yolox_eval(str(tmp_path/'no.pth'), str(shapes))


def test_the_nano_weights_on_photos(shared, tmp_path):
    with redirect_stdout(io.StringIO()) as printed: yolox_eval(str(shared/'weights/yolox_nano_coco.pth'), str(shared/'data/coco_ccby'), out=str(tmp_path), conf=.01, device='cpu')
    metrics = json.loads((tmp_path/'metrics.json').read_text())
    assert abs(metrics['AP'] - .330) < .004 and abs(metrics['AP50'] - .484) < .004
    assert '45 images, 399 objects and 6 crowds' in printed.getvalue()
    assert all(len(line) <= 80 for line in printed.getvalue().splitlines() if str(tmp_path) not in line)
