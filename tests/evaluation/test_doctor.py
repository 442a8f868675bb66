"yolox_doctor: its verdict is what training would do."
import json
import os
import re
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from layouts import HEIGHT, LAYOUTS, WIDTH, both, broken_images, coco, every, for_each_split
from layouts import one_image, pixels, write, write_image, write_layout, yolo
from matplotlib.figure import Figure
from PIL import Image

from cjm_yolox_pytorch.data.annotations import Annotations
from cjm_yolox_pytorch.data.checks import Fault, check_splits, fault_lines
from cjm_yolox_pytorch.data.prepare import prepare_splits
from cjm_yolox_pytorch.evaluation import doctor, image_checks
from cjm_yolox_pytorch.evaluation.dataset_figure import draw_dataset
from cjm_yolox_pytorch.evaluation.doctor import examine, report_lines, summary, yolox_doctor
from cjm_yolox_pytorch.evaluation.image_checks import look_at_images

HARMLESS = {'rare class', 'class without objects', 'image without objects', 'note', 'no validation split'}


@pytest.mark.parametrize('name', LAYOUTS)
def test_doctor_finds_every_layout_ready(name, tmp_path):
    splits = write_layout(name, tmp_path)
    report = examine(tmp_path)
    assert report.ready and set(report.splits) == set(splits)
    assert {f.kind for f in report.faults} <= HARMLESS
    lines = [line for text in report_lines(report) for line in text.splitlines()]
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    json.dumps(summary(report), allow_nan=False)


# The verdict

CROWDS = coco(['c'])
for crowd in CROWDS['annotations']: crowd['iscrowd'] = 1
OFFICIAL, TASK = LAYOUTS['coco official'][0], LAYOUTS['coco cvat task'][0]
BIRDS = both(every('images'), *for_each_split('birds_{s}.json', lambda split, names: coco(names)))


def voc_lists(**lists):
    "The images of VOC with these lists, and no others"
    def layout(root):
        write_layout('voc official', root)
        for path in (root/'ImageSets/Main').iterdir(): path.unlink()
        for split, text in lists.items(): write(root/f'ImageSets/Main/{split}.txt', text)
    return layout


def own_class_orders(root):
    "Each folder has its own list of classes"
    every('{split}', '{split}/{name}.txt', yolo)(root)
    for split, names in dict(train='ant\nbee', val='bee\nant').items(): write(root/split/'classes.txt', names)


VERDICTS = { # What is written, options, which splits are read, and what must be fixed
    'train and val': (OFFICIAL, {}, ['train', 'val'], []),
    'trainval and test': (voc_lists(test='c', trainval='a\nb'), {}, ['trainval', 'test'], []),
    'trainval without objects': (
        voc_lists(test='c', trainval='b'), {}, ['trainval', 'test'], ['nothing to learn']),
    'trainval in place of train': (
        voc_lists(train='a\nb', test='c', trainval='a\nb', val='b'), dict(train='trainval', val='test'),
        ['trainval', 'test'], []),
    'test without objects': (voc_lists(train='a', val='c', test='b'), {}, ['train', 'val', 'test'], []),
    'test without objects, to validate on': (
        voc_lists(train='a', test='b'), {}, ['train', 'test'], ['nothing to learn']),
    'crowds alone': (
        both(OFFICIAL, ('annotations/instances_val2017.json', CROWDS)), {}, ['train', 'val'], ['nothing to learn']),
    'one split': (TASK, {}, ['all'], []),
    'one image': (
        both(TASK, ('annotations/instances_default.json', coco(['a', 'b']))), {}, ['all'], ['too few images']),
    'other names': (BIRDS, {}, ['birds_train', 'birds_val'], ['no training split']),
    'other names, chosen': (
        BIRDS, dict(train='birds_val', val='birds_train'), ['birds_val', 'birds_train'], []),
    'a name that is not there': (OFFICIAL, dict(val='vaal'), ['train', 'val'], ['no training split']),
    'broken val': (
        both(OFFICIAL, ('annotations/instances_val2017.json', '{"annotations"')), {}, ['train'], ['cannot be read']),
    'classes in another order': (own_class_orders, {}, ['train', 'val'], []),
    'empty train': (voc_lists(train='', val='c'), {}, ['train', 'val'], ['nothing to learn']),
    'val alone': (voc_lists(val='a\nc'), {}, ['val'], ['no training split']),
    'val alone, chosen': (voc_lists(val='a\nc'), dict(train='val'), ['val'], []),
}


@pytest.mark.parametrize('name', VERDICTS)
def test_doctor_verdict_is_that_of_training(name, tmp_path):
    layout, options, splits, faults = VERDICTS[name]
    layout(tmp_path)
    report = examine(tmp_path, **options)
    assert list(report.splits) == splits and [f.kind for f in report.faults if f.stops] == faults
    try: prepare_splits(tmp_path, quiet=True, **options)
    except ValueError: assert not report.ready
    else: assert report.ready


def test_doctor_is_not_stopped_by_a_missing_test_split(tmp_path):
    write_layout('yolo roboflow', tmp_path)
    text = (tmp_path/'data.yaml').read_text()
    write(tmp_path/'data.yaml', text.replace('../test/images', '/content/birds/test/images'))
    report = examine(tmp_path)
    assert report.ready and [f.where for f in report.faults if f.kind == 'cannot be read'] == ['test']


def test_doctor_names_what_cannot_be_read(tmp_path):
    write_image(tmp_path, 'a')
    report = examine(tmp_path)
    assert not report.ready and 'does not look like any format' in report.faults[0].text
    TASK(tmp_path)
    write(tmp_path/'annotations/instances_default.json', '{"images": [')
    report = examine(tmp_path)
    assert [(f.kind, f.stops) for f in report.faults] == [('cannot be read', True)]
    assert 'not JSON' in report.faults[0].text


# Images

@pytest.mark.parametrize('kind', ['jpeg', 'png'])
@pytest.mark.parametrize('how', ['half', 'noise', 'empty', 'hole'])
def test_doctor_names_images_that_do_not_decode(kind, how, tmp_path):
    path = tmp_path/f'a.{kind}'
    path.write_bytes(broken_images(kind)[how])
    found = [(f.kind, f.stops) for f in look_at_images(dict(train=one_image(path, (HEIGHT, WIDTH))))]
    assert found == [('image does not decode', True)]


def test_doctor_finds_copies_by_their_pixels(tmp_path):
    write_layout('voc official', tmp_path)
    copy = tmp_path/'JPEGImages/c.png'
    Image.fromarray(pixels('a')).save(copy, compress_level=0) # Other bytes, same pixels
    fault, = [f for f in examine(tmp_path).faults if f.stops]
    assert fault.kind == 'copy in another split'
    assert 'c.png in val has the same pixels as JPEGImages/a.png in train' in fault.text
    copy.unlink()
    copy.symlink_to(tmp_path/'JPEGImages/a.png')
    assert [f.kind for f in examine(tmp_path).faults if f.stops] == ['image in two splits']
    write(tmp_path/'ImageSets/Main/train.txt', 'a\nb\nc\n')
    write(tmp_path/'ImageSets/Main/val.txt', 'b\n')
    report = examine(tmp_path)
    found = [f.kind for f in report.faults if f.stops or f.kind == 'duplicate image']
    assert found == ['nothing to learn', 'image in two splits', 'duplicate image']
    assert list(fault_lines(check_splits(report.splits))) == ['image in two splits: b.png is in train and in val']


def test_doctor_reads_every_image_and_stops_at_once(monkeypatch):
    N = 2000
    paths = np.array([f'{i}.png' for i in range(N)])
    none = np.zeros(0, dtype=int)
    starts = np.zeros(N + 1, dtype=int)
    many = Annotations(['ant'], paths, np.full((N, 2), 9), starts, np.zeros((0, 4)), none, none > 0, none)
    read, lock = [], threading.Lock()

    def read_annotated(a, i):
        with lock: read.append(i)
        return torch.from_numpy(np.random.default_rng(i).integers(0, 256, (3, 9, 9), dtype=np.uint8))
    monkeypatch.setattr(image_checks, 'read_annotated', read_annotated)

    def interrupted(images):
        yield images[0]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): look_at_images(dict(train=many), interrupted)
    assert len(read) <= 16*os.cpu_count()
    read.clear()
    assert not look_at_images(dict(train=many)) and sorted(read) == list(range(N))


def save_gray(root, scale, top=255, names='abcd'):
    "Four images of 16 bits whose values are at most `top*scale`, in COCO's format"
    objects = []
    for n, name in enumerate(names):
        values = pixels(name)[..., 0].astype(np.uint16).clip(0, top)*scale
        Image.fromarray(values).save(root/f'{name}.png')
        objects.append(dict(id=n, image_id=n, category_id=1, bbox=[5, 5, 20, 20]))
    images = [dict(id=n, file_name=f'{name}.png', width=WIDTH, height=HEIGHT) for n, name in enumerate(names)]
    write(root/'train.json', dict(coco([]), images=images, annotations=objects))


@pytest.mark.parametrize('scale, bits', [(257, None), (16, 12), (4, 10), (64, 14), (32, 13)])
def test_doctor_suggests_the_bit_depth_of_dark_files(scale, bits, tmp_path):
    save_gray(tmp_path, scale)
    report = examine(tmp_path)
    dark = [f.text for f in report.faults if f.kind == 'dark images']
    assert report.ready and len(dark) == (bits is not None)
    if bits is None: return
    assert '4 of 4 images are nearly black' in dark[0]
    assert f'Their 16-bit values look like {bits} bits: try --bit-depth {bits}' in dark[0]
    report = examine(tmp_path, bit_depth=bits)
    assert report.ready and not [f for f in report.faults if f.kind in ('dark images', 'flat images')]


def test_doctor_names_files_beyond_the_bit_depth(tmp_path):
    save_gray(tmp_path, 257)
    found = [(f.kind, f.stops, os.path.basename(f.where)) for f in examine(tmp_path, bit_depth=12).faults if f.stops]
    assert found == [('wrong bit depth', True, f'{name}.png') for name in 'abcd']


def test_doctor_looks_at_dark_and_flat_images_and_does_not_stop(tmp_path):
    write_layout('yolo images/train', tmp_path)
    dark = np.asarray(pixels('a')//9)
    Image.fromarray(dark).save(tmp_path/'images/train/a.png')
    Image.fromarray(np.full_like(dark, 200)).save(tmp_path/'images/train/b.png')
    report = examine(tmp_path)
    found = {f.kind: f.text for f in report.faults if f.kind.endswith('images')}
    assert report.ready and set(found) == {'dark images', 'flat images'}
    assert found['dark images'].startswith('train: 1 of 2 images are nearly black')
    assert 'bit' not in found['dark images'] # The file has 8
    assert found['flat images'] == 'train: 1 of 2 images have hardly any contrast, such as b.png'


@pytest.mark.parametrize('options, stops', [(dict(val='train'), [True]), (dict(train='train', val='train'), [False])])
def test_doctor_allows_to_validate_on_training_images_on_purpose(options, stops, tmp_path):
    write_layout('yolo images/train', tmp_path)
    report = examine(tmp_path, **options)
    assert [f.stops for f in report.faults if f.kind == 'same split'] == stops and report.ready != stops[0]


def test_doctor_shows_every_note():
    faults = [Fault(kind, '', f'{kind} {n}') for kind in ('note', 'rare class') for n in range(5)]
    lines = [line.strip() for line in report_lines(doctor.Report('', 416, faults=faults))]
    assert [line for line in lines if re.match(r'note \d', line)] == [f'note {n}' for n in range(5)]
    assert lines.count('and 2 more') == 1 and {'note (5)', 'rare class (5)'} <= {*lines}


def test_a_single_fault_is_not_counted():
    "Its text may count something else"
    faults = [Fault('tiny box', '', '12 of 30 boxes are narrower than 4 pixels')]
    lines = report_lines(doctor.Report('', 416, faults=faults))
    assert '  tiny box: 12 of 30 boxes are narrower than 4 pixels' in lines


def test_doctor_allows_missing_data(tmp_path):
    save_gray(tmp_path, 257)
    text = (tmp_path/'train.json').read_text().replace('[5, 5, 20, 20]', '[5, 5, 0, 20]', 1)
    write(tmp_path/'train.json', text)
    for allowed in (False, True):
        report = examine(tmp_path, allow_missing=allowed)
        fault, = [f for f in report.faults if f.kind == 'missing data']
        assert report.ready == allowed and '1 of 4 boxes are left out' in fault.text


# The figure and the command

def test_doctor_draws_classes_with_the_same_beginning_apart(tmp_path, monkeypatch):
    for name in 'ab': write_image(tmp_path, name)
    write(tmp_path/'train.json', coco(['a', 'b']))
    splits = examine(tmp_path).splits
    names = ['the same beginning, one', 'the same beginning, two']
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda fig, *args, **kw: figures.append(fig) or save(fig, *args, **kw))
    draw_dataset({split: replace(a, names=names) for split, a in splits.items()}, [], 416, tmp_path/'doctor.png')
    classes = figures[0].axes[0]
    assert len(classes.get_yticklabels()) == 2
    assert [p.get_width() for p in classes.patches if p.get_width()] == [1, 1] # A bar for each object


@pytest.mark.parametrize('size', [0, -5])
def test_doctor_needs_a_size(size, tmp_path):
    with pytest.raises(ValueError, match=f'img_size={size}: must be at least 1'):
        yolox_doctor(str(tmp_path), img_size=size)


def test_doctor_command(tmp_path, monkeypatch, capsys):
    write_layout('yolo roboflow', tmp_path/'data')

    def run(*args): # As in a shell: exit status, output and errors
        monkeypatch.setattr(sys, 'argv', ['yolox_doctor', *map(str, args)])
        status = 0
        try: yolox_doctor()
        except SystemExit as e: status = e.code
        return status, *capsys.readouterr()
    status, text, _ = run(tmp_path/'data', '--out', tmp_path/'out')
    assert status == 0 and text.endswith('ready to train\n')
    numbers = json.loads((tmp_path/'out/doctor.json').read_text())
    assert numbers['splits']['train']['classes'] == dict(ant=1, bee=1)
    assert Image.open(tmp_path/'out/doctor.png').size[0] == 1200
    assert run(tmp_path/'data', '--bit-depth', '12', '--allow-missing')[0] == 0
    status, text, errors = run(tmp_path/'data', '--format', 'coco', '--json')
    assert status == 3 and 'does not look like coco' in json.loads(text)['faults'][0]['text'] and not errors
    (tmp_path/'data/train/images/a.png').write_bytes(broken_images('png')['half'])
    status, text, _ = run(tmp_path/'data')
    assert status == 3 and 'a.png cannot be decoded' in re.sub(r'\s+', ' ', text)
    assert text.endswith('not ready to train: 1 item above must be fixed\n')
