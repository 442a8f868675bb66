"Data sets as people have them: every layout of every format, and all that can be wrong with them."
import gc
import io
import json
import os
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cjm_yolox_pytorch.data.prepare import prepare_splits
from cjm_yolox_pytorch.evaluation import dataset_figure, doctor
from cjm_yolox_pytorch.data.batches import DetectionDataset
from cjm_yolox_pytorch.data.annotations import Annotations, read_annotated
from cjm_yolox_pytorch.data.checks import check, check_splits, fault_lines
from cjm_yolox_pytorch.data.splits import find_splits, read_split
from cjm_yolox_pytorch.data.voc import read_voc
from cjm_yolox_pytorch.data.yolo import read_yolo
from cjm_yolox_pytorch.evaluation.doctor import examine, look_at_images, report_lines, summary
from cjm_yolox_pytorch.files.images import as_image, read_image
from cjm_yolox_pytorch.files.paths import files_below

WIDTH, HEIGHT = 80, 60
NAMES = ['ant', 'bee']
OBJECTS = {'a': [('bee', 8, 6, 40, 30), ('ant', 0, 0, 16, 12)], 'b': [], 'c': [('ant', 40, 30, 80, 60)]} # xyxy in pixels
SPLITS = dict(train=['a', 'b'], val=['c'])


def pixels(name): return np.random.default_rng(ord(name)).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def write(path, text, encoding='utf-8'):
    if text is None: return path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode(encoding))


def picture(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(name)).save(folder/f'{name}.png')


def coco(names, first=1, kind=False, folder=''):
    "COCO's dictionary for the images `names`"
    categories = [dict(id=n + first, name=c, supercategory='insects') for n, c in enumerate(NAMES)]
    images = [dict(id=n, file_name=f'{folder}{name}.png', width=WIDTH, height=HEIGHT) for n, name in enumerate(names)]
    boxes = [(n, *o) for n, name in enumerate(names) for o in OBJECTS[name]]
    return dict(images=images, categories=([dict(id=0, name='insects', supercategory='none')] if kind else []) + categories,
                annotations=[dict(id=i, image_id=n, category_id=NAMES.index(c) + first, bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1)*(y2 - y1), iscrowd=0,
                                  segmentation=[]) for i, (n, c, x1, y1, x2, y2) in enumerate(boxes)])


def voc(name, first=1, filename=None):
    "XML for an image, counting pixels from `first`"
    rows = ''.join(f'<object><name>{c}</name><bndbox><xmin>{x1 + first}</xmin><ymin>{y1 + first}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>' for c, x1, y1, x2, y2 in OBJECTS[name])
    return f'<annotation><filename>{filename or name + ".png"}</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>{rows}</annotation>'


def yolo(name, first=0, outline=False):
    "Lines for an image"
    def line(c, x1, y1, x2, y2):
        box = [x1, y1, x2, y1, x2, y2, x1, y2] if outline else [(x1 + x2)/2, (y1 + y2)/2, x2 - x1, y2 - y1]
        return ' '.join(map(str, [NAMES.index(c) + first] + [v / (HEIGHT if n % 2 else WIDTH) for n, v in enumerate(box)]))
    return '\n'.join(line(*o) for o in OBJECTS[name]) + '\n'*bool(OBJECTS[name])


def every(pictures, annotations=None, text=None):
    "Write images and annotations into the folders that are named after `split` and `name`"
    def layout(root):
        for split, names in SPLITS.items():
            for name in names:
                picture(root/pictures.format(split=split), name)
                if annotations: write(root/annotations.format(split=split, name=name), text(name))
    return layout


def both(*layouts):
    def layout(root):
        for each in layouts: each(root) if callable(each) else write(root/each[0], each[1])
    return layout


VALID = {'train': 'train', 'val': 'valid'}
def roboflow(pictures, annotations=None, text=None):
    "With a folder `valid`"
    def layout(root):
        every(pictures, annotations, text)(root)
        (root/'val').rename(root/'valid')
    return layout


EVERYTHING = ['a', 'b', 'c']
LAYOUTS = { # What is written, and which splits it has
    'coco roboflow': (both(roboflow('{split}'), *[(f'{VALID[s]}/_annotations.coco.json', coco(n, 1, kind=True)) for s, n in SPLITS.items()], ('README.roboflow.txt', 'x')), SPLITS),
    'coco cvat task': (both(every('images'), ('annotations/instances_default.json', coco(EVERYTHING))), dict(all=EVERYTHING)),
    'coco cvat project': (both(every('images/{split}'), ('annotations/instances_Train.json', coco(SPLITS['train'], folder='train/')), ('annotations/instances_Validation.json', coco(SPLITS['val'], folder='val/'))), SPLITS),
    'coco official': (both(every('{split}2017'), ('annotations/captions_val2017.json', dict(annotations=[])), *[(f'annotations/instances_{s}2017.json', coco(n, 7)) for s, n in SPLITS.items()]), SPLITS),
    'coco in capitals': (both(every('Images'), ('Annotations/ALL.JSON', coco(EVERYTHING))), dict(all=EVERYTHING)),
    'coco below its folder': (both(every('images'), ('annotations/all.json', coco(EVERYTHING, folder='images/'))), dict(all=EVERYTHING)),
    'coco one file': (both(every('images'), ('annotations.json', coco(EVERYTHING, folder='images\\')), ('package.json', {})), dict(all=EVERYTHING)),
    'voc official': (both(every('JPEGImages', 'Annotations/{name}.xml', voc), *[(f'ImageSets/Main/{s}.txt', '\n'.join(n)) for s, n in SPLITS.items()], ('ImageSets/Main/ant_train.txt', 'a  1\nb -1')), SPLITS),
    'voc cvat': (both(every('JPEGImages', 'Annotations/{name}.xml', lambda name: voc(name, 0)), ('ImageSets/Main/default.txt', 'a\nb\nc\n'), ('labelmap.txt', '# label:color_rgb:parts:actions')), dict(all=EVERYTHING)),
    'voc roboflow': (roboflow('{split}', '{split}/{name}.xml', voc), SPLITS),
    'voc without lists': (every('images', 'annotations/{name}.xml', voc), dict(all=EVERYTHING)),
    'voc folders of both': (every('{split}/JPEGImages', '{split}/Annotations/{name}.xml', voc), SPLITS),
    'voc folders below both': (every('images/{split}', 'Annotations/{split}/{name}.xml', voc), SPLITS),
    'voc in capitals': (every('IMAGES', 'ANNOTATIONS/{name}.XML', voc), dict(all=EVERYTHING)),
    'voc in one folder': (every('.', '{name}.xml', voc), dict(all=EVERYTHING)),
    'yolo roboflow': (both(roboflow('{split}/images', '{split}/labels/{name}.txt', yolo), ('data.yaml', "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['ant', 'bee']\n\nroboflow:\n  version: 3")), SPLITS),
    'yolo outlines': (both(roboflow('{split}/images', '{split}/labels/{name}.txt', lambda name: yolo(name, outline=True)), ('data.yaml', 'train: train/images\nval: valid/images\nnames: [ant, bee]')), SPLITS),
    'yolo ids from 1': (both(every('images/{split}', 'labels/{split}/{name}.txt', lambda name: yolo(name, 1)), ('my.yaml', 'path: ../nowhere\ntrain: [images/train]\nval: images/val\nnames:\n  1: ant\n  2: bee')), SPLITS),
    'yolo cvat ultralytics': (both(every('images/{split}', 'labels/{split}/{name}.txt', yolo), ('data.yaml', 'path: ./\ntrain: train.txt\nval: val.txt\nnames:\n  0: ant\n  1: bee'),
                                   *[(f'{s}.txt', '\n'.join(f'images/{s}/{name}.png' for name in n)) for s, n in SPLITS.items()]), SPLITS),
    'yolo cvat 1.1': (both(every('obj_{split}_data', 'obj_{split}_data/{name}.txt', yolo), ('obj.data', 'classes = 2\ntrain = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\nbackup = backup/\n'), ('obj.names', 'ant\nbee\n'),
                           *[(f'{s}.txt', '\n'.join(f'data/obj_{s}_data/{name}.png' for name in n)) for s, n in SPLITS.items()]), SPLITS),
    'yolo images/train': (both(every('images/{split}', 'labels/{split}/{name}.txt', yolo), ('classes.txt', 'ant\nbee\n')), SPLITS),
    'yolo train/images': (both(roboflow('{split}/images', '{split}/labels/{name}.txt', yolo), ('classes.txt', 'ant\nbee\n')), SPLITS),
    'yolo roboflow darknet': (both(roboflow('{split}', '{split}/{name}.txt', yolo), ('train/_darknet.labels', 'ant\nbee')), SPLITS),
    'yolo label studio': (both(every('images', 'labels/{name}.txt', yolo), ('classes.txt', 'ant\nbee\n'), ('notes.json', dict(categories=[]))), dict(all=EVERYTHING)),
    'yolo in capitals': (both(every('Images/{split}', 'Labels/{split}/{name}.TXT', yolo), ('Labels/classes.txt', 'ant\nbee\n')), SPLITS),
    'yolo labelimg': (both(every('images/{split}', 'labels/{split}/{name}.txt', yolo), *[(f'labels/{s}/classes.txt', 'ant\nbee') for s in SPLITS]), SPLITS),
    'yolo labelimg, folders of both': (both(every('{split}/images', '{split}/labels/{name}.txt', yolo), ('train/labels/classes.txt', 'ant\nbee')), SPLITS),
    'yolo absolute': (lambda root: both(every('images/{split}', 'labels/{split}/{name}.txt', yolo), ('train.txt', '\n'.join(f'{root}/images/train/{name}.png' for name in SPLITS['train'])),
                                        ('birds.yaml', f'path: {root}\ntrain: train.txt\nval: {root}/images/val\nnames: {{"0": ant, "1": bee}}'), ('args.yaml', 'task: detect\nval: true'))(root), SPLITS),
    'yolo in one folder': (both(every('.', '{name}.txt', yolo), ('classes.txt', 'ant\nbee\n')), dict(all=EVERYTHING)),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_every_layout_is_read_as_it_comes(name, tmp_path):
    "The same images, boxes and names from each, found by looking and by naming the format; and the doctor has nothing to say against it"
    layout, splits = LAYOUTS[name]
    layout(tmp_path/'data')
    found = find_splits(tmp_path/'data')
    assert set(found) == set(splits) == set(find_splits(tmp_path/'data', name.split()[0]))
    for split, images in splits.items():
        annotations = found[split]()
        assert annotations.names == NAMES and [Path(p).stem for p in annotations.paths] == images
        for i, image in enumerate(images):
            boxes, labels, crowd = annotations.objects(i)
            assert [(NAMES[l], *b) for l, b in zip(labels, boxes.round(3).tolist())] == OBJECTS[image] and not crowd.any()
            assert np.array_equal(read_annotated(annotations, i).permute(1, 2, 0), pixels(image))
    assert read_split(tmp_path/'data', 'valid' if 'val' in splits else 'default').names == NAMES
    report = examine(tmp_path/'data')
    assert report.ready and set(report.splits) == set(splits)
    assert {f.kind for f in report.faults} <= {'rare class', 'class without objects', 'note', 'no split to validate on'}
    assert all(len(line) <= 80 for text in report_lines(report) for line in text.splitlines() if str(tmp_path) not in line)
    json.dumps(summary(report), allow_nan=False)


def test_what_was_settled_is_said(tmp_path):
    LAYOUTS['coco roboflow'][0](tmp_path/'coco')
    assert read_split(tmp_path/'coco', 'train').notes == ["class 'insects' is left out: it is the kind of the other classes, and has no objects"]
    LAYOUTS['voc cvat'][0](tmp_path/'voc')
    assert read_split(tmp_path/'voc', 'all').notes == ['pixels are counted from 0, since some box begins there']
    every('.', '{name}.txt', yolo)(tmp_path/'yolo')
    nameless = read_split(tmp_path/'yolo', 'all')
    assert nameless.names == ['0', '1'] and [f.kind for f in check(nameless)] == ['note']
    every('images', 'labels/{name}.txt', yolo)(tmp_path/'lost')
    (tmp_path/'lost/images/a.png').unlink()
    assert '1 label files without an image are left out' in read_split(tmp_path/'lost', 'all').notes[0]
    every('.', '{name}.xml', voc)(tmp_path/'bare')
    (tmp_path/'bare/c.xml').unlink()
    assert '1 images without an XML file are left out' in read_split(tmp_path/'bare', 'all').notes[0]


def test_yolo_images_without_a_file_have_no_objects(tmp_path):
    every('images', 'labels/{name}.txt', yolo)(tmp_path)
    (tmp_path/'labels/c.txt').unlink()
    assert np.diff(read_split(tmp_path, 'all').starts).tolist() == [2, 0, 0]
    for path in (tmp_path/'labels').iterdir(): path.unlink()
    with pytest.raises(FileNotFoundError, match='no image has a label file'): read_yolo(tmp_path/'images')


def test_each_folder_may_have_an_order_of_classes_of_its_own(tmp_path):
    "LabelImg writes classes.txt for each folder; two that hold for one folder have to agree"
    every('{split}', '{split}/{name}.txt', yolo)(tmp_path)
    write(tmp_path/'train/classes.txt', 'ant\nbee')
    write(tmp_path/'val/classes.txt', 'bee\nant')
    assert [read_split(tmp_path, split).names for split in SPLITS] == [['ant', 'bee'], ['bee', 'ant']]
    assert examine(tmp_path).ready
    write(tmp_path/'classes.txt', 'bee\nant')
    assert read_split(tmp_path, 'val').names == ['bee', 'ant']
    with pytest.raises(ValueError, match='lists of classes differ: .*bee, ant; .*train/classes.txt: ant, bee. Leave only the one'): read_split(tmp_path, 'train')


def test_labels_without_image_and_images_without_labels_are_told(tmp_path):
    LAYOUTS['yolo absolute'][0](tmp_path)
    assert read_split(tmp_path, 'train').notes == read_split(tmp_path, 'val').notes == []
    write(tmp_path/'labels/val/z.txt', yolo('a'))
    (tmp_path/'labels/train/b.txt').unlink()
    assert read_split(tmp_path, 'train').notes == ['1 images have no label file, which is to say no objects']
    (note,) = read_split(tmp_path, 'val').notes
    assert re.match('1 label files without an image are left out, such as .*labels/val/z.txt', note)


def test_names_of_classes_that_are_only_counted(tmp_path):
    LAYOUTS['yolo roboflow'][0](tmp_path)
    write(tmp_path/'data.yaml', 'train: train/images\nval: valid/images\nnc: 3')
    assert [read_split(tmp_path, split).names for split in SPLITS] == [['0', '1', '2']]*2


def test_a_mark_of_windows_before_the_text(tmp_path):
    LAYOUTS['coco cvat task'][0](tmp_path/'coco')
    LAYOUTS['voc official'][0](tmp_path/'voc')
    LAYOUTS['yolo roboflow'][0](tmp_path/'yolo')
    LAYOUTS['yolo cvat 1.1'][0](tmp_path/'darknet')
    before = [[read().names, read().boxes.tolist()] for folder in sorted(tmp_path.iterdir()) for read in find_splits(folder).values()]
    for path in [p for kind in ('json', 'txt', 'yaml', 'xml', 'names', 'data') for p in tmp_path.rglob(f'*.{kind}')]: path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert [[read().names, read().boxes.tolist()] for folder in sorted(tmp_path.iterdir()) for read in find_splits(folder).values()] == before


@pytest.mark.parametrize('layout, file', [('yolo images/train', 'classes.txt'), ('yolo images/train', 'labels/train/a.txt'), ('yolo roboflow', 'data.yaml'), ('coco cvat task', 'annotations/instances_default.json'), ('voc official', 'ImageSets/Main/train.txt')])
def test_text_that_is_not_utf_8_is_named(layout, file, tmp_path):
    LAYOUTS[layout][0](tmp_path)
    write(tmp_path/file, '# Vögel, "annotations"', 'latin-1')
    with pytest.raises(ValueError, match=f'{file}: byte 3 is not UTF-8. Save the file as UTF-8'): read_split(tmp_path, 'all' if 'coco' in layout else 'train', layout.split()[0])


def test_files_that_have_nothing_to_do_with_it(tmp_path):
    "Notes in another encoding, what editors and macOS hide, and a link that leads back"
    LAYOUTS['coco cvat task'][0](tmp_path/'coco')
    write(tmp_path/'coco/notes.yaml', 'author: Jörg', 'latin-1')
    write(tmp_path/'coco/annotations/._instances_default.json', b'\x00\x05\x16\x07"annotations"')
    LAYOUTS['voc in one folder'][0](tmp_path/'voc')
    write(tmp_path/'voc/.idea/workspace.xml', '<project/>')
    LAYOUTS['yolo in one folder'][0](tmp_path/'yolo')
    picture(tmp_path/'yolo/.ipynb_checkpoints', 'a')
    (tmp_path/'yolo/back').symlink_to('..')
    (tmp_path/'yolo/again').symlink_to(tmp_path/'yolo')
    for name in ('coco', 'voc'): assert [Path(p).stem for p in read_split(tmp_path/name, 'all').paths] == EVERYTHING
    assert [p.name for p in files_below(tmp_path/'yolo', '.txt')].count('a.txt') == 1 and not [p for p in files_below(tmp_path, '.png') if '.ipynb_checkpoints' in p.parts]


def test_only_what_lists_name_is_read(tmp_path):
    LAYOUTS['voc official'][0](tmp_path)
    write(tmp_path/'Annotations/z.xml', 'broken')
    assert [len(read()) for read in find_splits(tmp_path).values()] == [2, 1]
    for split in ('vaal', 'all'):
        with pytest.raises(ValueError, match=rf"has no split '{split}': choose one of \['ant_train', 'train', 'val'\]"): read_voc(tmp_path, split)
    LAYOUTS['voc roboflow'][0](tmp_path/'folders')
    assert [Path(p).stem for p in read_voc(tmp_path/'folders', 'valid').paths] == [Path(p).stem for p in read_voc(tmp_path/'folders', 'val').paths] == ['c']


def test_every_xml_file_is_read_once(tmp_path, monkeypatch):
    LAYOUTS['voc official'][0](tmp_path)
    read, once = [], data._voc_file
    monkeypatch.setattr(data, '_voc_file', lambda path: read.append(path.stem) or once(path))
    for reader in find_splits(tmp_path).values(): reader()
    assert sorted(read) == EVERYTHING


def test_a_mask_beside_its_image(tmp_path):
    LAYOUTS['voc official'][0](tmp_path)
    Image.new('L', (WIDTH, HEIGHT)).save(tmp_path/'JPEGImages/a.bmp')
    assert Path(read_split(tmp_path, 'train').paths[0]).name == 'a.png'
    write(tmp_path/'Annotations/a.xml', voc('a', filename='renamed'))
    with pytest.raises(ValueError, match='differ in nothing but their suffix: .*a.bmp, .*a.png. Leave one'): read_split(tmp_path, 'train')


def test_a_box_over_the_border_does_not_say_how_pixels_are_counted(tmp_path):
    LAYOUTS['voc official'][0](tmp_path)
    write(tmp_path/'Annotations/c.xml', voc('c').replace('<xmin>41<', '<xmin>-3<'))
    found = read_split(tmp_path, 'train')
    assert not found.notes and found.objects(0)[0].tolist() == [[*o[1:]] for o in OBJECTS['a']]


def test_images_of_another_data_set_are_not_taken(tmp_path):
    write(tmp_path/'ours/all.json', coco(['a']))
    picture(tmp_path/'images', 'a')
    with pytest.raises(FileNotFoundError, match='its image a.png is in none of'): read_split(tmp_path/'ours', 'all')
    for split in ('train', 'val'):
        write(tmp_path/f'two/annotations/{split}.json', coco(['a']))
        for folder in (split, 'images'): picture(tmp_path/'two'/folder, 'a')
    assert [Path(read_split(tmp_path/'two', split).paths[0]).parent.name for split in SPLITS] == ['train', 'val']


def test_boxes_left_out_stay_with_their_image(tmp_path):
    for folder in 'xy':
        picture(tmp_path/f'images/{folder}', 'a')
        write(tmp_path/f'labels/{folder}/a.txt', '0 .5 .5 .1 .1\n' + '0 .5 .5 0 .1\n'*(folder == 'x'))
    picture(tmp_path/'images', 'b')
    (tmp_path/'images/b.png').rename(tmp_path/'images/b: box 1.png')
    write(tmp_path/'labels/b: box 1.txt', '0 .5 .5 .1 0')
    found = read_yolo(tmp_path/'images', ['ant'])
    whose = [Path(f.where).relative_to(tmp_path/'images').as_posix() for f in check(found) if f.kind == 'box left out']
    assert sorted(whose) == ['b: box 1.png', 'x/a.png']
    assert [len(found.take([i]).dropped) for i in range(3)] == [int(Path(p).relative_to(tmp_path/'images').as_posix() in whose) for p in found.paths]


def test_a_square_image_is_decoded_once(tmp_path, monkeypatch):
    Image.new('RGB', (9, 9)).save(tmp_path/'a.png')
    decoded, decode = [], data.read_image
    monkeypatch.setattr(data, 'read_image', lambda *args: decoded.append(args) or decode(*args))
    read_annotated(one(tmp_path/'a.png', (9, 9)), 0)
    assert len(decoded) == 1


def test_errors_name_files_in_long_paths(tmp_path):
    folder = tmp_path/('d'*100)/('e'*100)
    picture(folder, 'a')
    write(folder/'a.txt', '7 .5 .5 .1 .1')
    with pytest.raises(ValueError, match=r'\.\.\.e+/a.txt line 1: class 7 has no name; there are names for 0. Mend'): read_yolo(folder, ['ant'])


def test_outlines_alone_are_no_boxes(tmp_path):
    LAYOUTS['coco cvat task'][0](tmp_path)
    alone = coco(EVERYTHING)
    alone['annotations'] = [{k: v for k, v in a.items() if k != 'bbox'} for a in alone['annotations']]
    write(tmp_path/'annotations/instances_default.json', alone)
    with pytest.raises(ValueError, match='Outlines are not enough: export boxes, too'): read_split(tmp_path, 'all')


@pytest.mark.parametrize('files', [('a.yaml', 'b.yaml'), ('obj.data', 'birds.yml')])
def test_two_descriptions_are_refused(files, tmp_path):
    every('images', 'labels/{name}.txt', yolo)(tmp_path)
    for name in files: write(tmp_path/name, 'train = images' if name == 'obj.data' else 'train: images\nnames: [ant, bee]')
    with pytest.raises(ValueError, match='more than one file describes a data set: .*Give one of them'): find_splits(tmp_path)
    assert len(read_split(tmp_path/files[1], 'train')) == 3


def test_a_test_split_that_is_elsewhere_does_not_stop_training(tmp_path):
    LAYOUTS['yolo roboflow'][0](tmp_path)
    write(tmp_path/'data.yaml', (tmp_path/'data.yaml').read_text().replace('../test/images', '/content/birds/test/images'))
    assert len(read_split(tmp_path, 'train')) == 2
    with pytest.raises(ValueError, match='/content/birds/test/images is absolute'): read_split(tmp_path, 'test')
    report = examine(tmp_path)
    assert report.ready and [f.where for f in report.faults if f.kind == 'cannot be read'] == ['test']


def test_as_many_objects_as_there_are(tmp_path):
    picture(tmp_path, 'a')
    write(tmp_path/'a.txt', '\n'.join(f'0 {x/100:.2f} .5 .01 .01' for x in range(5, 95) for _ in range(30)))
    assert len(read_yolo(tmp_path, ['ant']).labels) == 2700


# What is wrong

def changed(path, **values):
    "Change the first annotation, image or category (by name) of a COCO file"
    data = json.loads(path.read_text())
    for name, change in values.items(): data[name][0].update(change)
    path.write_text(json.dumps(data))


BAD_COCO = {
    'strings': (dict(annotations=dict(bbox=['1', '2', '3', '4'])), 'annotations whose bbox is not 4 numbers: .*Write plain numbers'),
    'three numbers': (dict(annotations=dict(bbox=[1, 2, 3])), 'annotations whose bbox is not 4 numbers'),
    'nothing': (dict(annotations=dict(bbox=None)), 'annotations whose bbox is not 4 numbers'),
    'NaN': (dict(annotations=dict(bbox=[1, float('nan'), 3, 4])), r'not finite: a.png: box \[1, nan, 4, nan\]. Mend'),
    'infinite': (dict(annotations=dict(bbox=[1, 2, float('inf'), 4])), r'not finite: a.png: box \[1, 2, inf, 6\]'),
    'negative size': (dict(annotations=dict(bbox=[9, 9, -3, 4])), r'boxes of negative size: a.png: box \[9, 9, 6, 13\]. Mend the file'),
    'unknown class': (dict(annotations=dict(category_id=9)), 'whose category_id the file does not define: annotation 0 has 9. Define it'),
    'unknown image': (dict(annotations=dict(image_id='0')), 'whose image_id the file does not define: annotation 0 has 0. Define it'),
    'size in words': (dict(images=dict(width='wide')), 'images whose height and width are not numbers'),
    'no size': (dict(images=dict(width=0)), 'images without height or width: '),
    'parent folder': (dict(images=dict(file_name='../../etc/passwd')), '../../etc/passwd leaves the folder of the data. Write it relative'),
    'absolute': (dict(images=dict(file_name='/etc/passwd')), '/etc/passwd is absolute'),
    'drive': (dict(images=dict(file_name='C:\\photos\\a.png')), 'is absolute, here or on Windows'),
    'missing': (dict(images=dict(file_name='z.png')), 'instances_default.json: 1 of 3 images are missing, such as .*z.png. Add the files'),
    'same id': (dict(images=dict(id=1)), 'several images have the same id: 1. Give each'),
    'same file': (dict(images=dict(file_name='b.png')), 'listed more than once: .*b.png. List each once'),
    'same class': (dict(categories=dict(name='bee')), 'several classes have the same name: bee'),
    'class without a name': (dict(categories=dict(name=None)), 'names of classes that are not text: None'),
    'same class number': (dict(categories=dict(id=2)), 'several categories have the same id: 2. Give each'),
    'class number as text': (dict(categories=dict(id='1')), 'whose category_id the file does not define: annotation 1 has 1'),
    'class number in a list': (dict(annotations=dict(category_id=[1])), 'annotations whose category_id is no number or text: .*Mend'),
    'image number in a list': (dict(images=dict(id=[1])), 'images whose id is no number or text: .*a.png'),
    'no file name': (dict(images=dict(file_name=None)), 'images whose file_name is no text: .*Mend'),
    'crowd as text': (dict(annotations=dict(iscrowd='0')), "annotations whose iscrowd is neither 0 nor 1: .*Write 1 without quotes"),
}


@pytest.mark.parametrize('name', BAD_COCO)
def test_bad_coco(name, tmp_path):
    LAYOUTS['coco cvat task'][0](tmp_path)
    change, message = BAD_COCO[name]
    changed(tmp_path/'annotations/instances_default.json', **change)
    with pytest.raises((ValueError, FileNotFoundError), match=message): read_split(tmp_path, 'all')
    report = examine(tmp_path)
    assert not report.ready and [f.kind for f in report.faults] == ['cannot be read'] and re.search(message, report.faults[0].text)


@pytest.mark.parametrize('text, message', [('{"images": [', 'instances_default.json: not JSON: .*line 1 column 13.*cut off'), ('', 'not JSON'), ('[]', "no list 'images'"), ('{"images": 3}', "no list 'images'"), ('['*100000, 'not JSON'),
                                           ('{"images": [], "annotations": [3], "categories": []}', 'annotations that lack one of .*: 3. Complete'), ('\x00', 'not JSON')])
def test_unreadable_json(text, message, tmp_path):
    write(tmp_path/'annotations/instances_default.json', text)
    with pytest.raises(ValueError, match=message): read_split(tmp_path, 'all')


def test_many_faults_are_named_at_once(tmp_path):
    LAYOUTS['coco cvat task'][0](tmp_path)
    data = coco(EVERYTHING)
    data['annotations'] = [dict(data['annotations'][0], id=n, category_id=100 + n) for n in range(12)]
    write(tmp_path/'annotations/instances_default.json', data)
    with pytest.raises(ValueError, match='does not define: 12, such as annotation 0 has 100; annotation 1 has 101; annotation 2 has 102. Define'): read_split(tmp_path, 'all')


BAD_XML = {
    'cut off': ('<annotation><object>', 'a.xml: not XML: no element found: line 1, column 20. It may have been cut off'),
    'empty': ('', 'a.xml: not XML'),
    'binary': ('\x00\x01', 'a.xml: not XML'),
    'laughs': ('<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>', 'a.xml: declares a document type or entities.*Remove them'),
    'another kind': ('<annotations><image/></annotations>', 'a.xml: begins with <annotations> and not with <annotation>'),
    'no name': ('<annotation><object/></annotation>', 'a.xml: <object> has no <name>'),
    'no box': ('<annotation><object><name>ant</name></object></annotation>', 'a.xml: <object> has no <bndbox/xmin>'),
    'word': (voc('a').replace('<xmin>9<', '<xmin>left<'), "a.xml: <bndbox/xmin> is 'left' and not a number"),
    'NaN': (voc('a').replace('<xmin>9<', '<xmin>nan<'), "a.xml: <bndbox/xmin> is 'nan' and not a number"),
    'size of NaN': (voc('a').replace(f'<width>{WIDTH}<', '<width>nan<'), "a.xml: <size/width> is 'nan' and not a number"),
    'endless': (voc('a').replace(f'<width>{WIDTH}<', '<width>inf<'), "a.xml: <size/width> is 'inf' and not a number"),
    'laughs in UTF-16': ('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE l [<!ENTITY a "ha">]><annotation>&a;</annotation>'.encode('utf-16'), 'a.xml: declares a document type'),
    'negative size': (voc('a').replace('<xmin>9<', '<xmin>70<'), r'boxes of negative size: a.png: box \[70, 7, 40, 30\]'),
    'size': (voc('a').replace(f'<width>{WIDTH}<', '<width>wide<'), "a.xml: <size/width> is 'wide'"),
}


@pytest.mark.parametrize('name', BAD_XML)
def test_bad_voc(name, tmp_path):
    LAYOUTS['voc official'][0](tmp_path)
    text, message = BAD_XML[name]
    write(tmp_path/'Annotations/a.xml', text)
    with pytest.raises(ValueError, match=message): read_split(tmp_path, 'train')
    assert not examine(tmp_path).ready


def test_voc_looks_for_images_in_its_folders_alone(tmp_path):
    LAYOUTS['voc official'][0](tmp_path/'data')
    for filename in ('../../etc/passwd', '/etc/passwd'):
        write(tmp_path/'data/Annotations/a.xml', voc('a', filename=filename))
        assert read_split(tmp_path/'data', 'train').paths[0] == str(tmp_path/'data/JPEGImages/a.png') # What `filename` says is not followed
    picture(tmp_path, 'b')
    write(tmp_path/'b.xml', voc('b'))
    write(tmp_path/'data/ImageSets/Main/train.txt', '../b\na\n')
    with pytest.raises(FileNotFoundError, match='train.txt: 1 of the 2 names lack an XML file in .*Annotations or an image in .*JPEGImages, such as ../b'): read_split(tmp_path/'data', 'train')
    write(tmp_path/'data/ImageSets/Main/train.txt', 'a\na\n')
    with pytest.raises(ValueError, match='listed more than once'): read_split(tmp_path/'data', 'train')


BAD_YOLO = {
    'unknown class': ('2 .5 .5 .1 .1', r'a.txt line 1: class 2 has no name; there are names for 0, 1. Mend'),
    'half a class': ('0.5 .5 .5 .1 .1', 'a.txt line 1: class 0.5 has no name'),
    'negative class': ('\n-1 .5 .5 .1 .1', 'a.txt line 2: class -1 has no name'),
    'word': ('ant .5 .5 .1 .1', "a.txt line 1: could not convert string to float: 'ant'"),
    'NaN': ('0 nan .5 .1 .1', 'a.txt line 1: nan is no fraction'),
    'infinite': ('0 inf .5 .1 .1', 'a.txt line 1: inf is no fraction'),
    'pixels': ('0 40 30 20 10', 'a.txt line 1: 40 is no fraction of the width or height'),
    'negative size': ('0 .5 .5 -.1 .1', r'boxes of negative size: a.png'),
    'score': ('0 .5 .5 .1 .1 .9', 'a.txt line 1: 6 numbers. 5 are a class and its box'),
    'cut off': ('0 .5 .5 .1', 'a.txt line 1: 4 numbers'),
}


@pytest.mark.parametrize('name', BAD_YOLO)
def test_bad_yolo(name, tmp_path):
    LAYOUTS['yolo roboflow'][0](tmp_path)
    text, message = BAD_YOLO[name]
    write(tmp_path/'train/labels/a.txt', text)
    with pytest.raises(ValueError, match=message): read_split(tmp_path, 'train')


@pytest.mark.parametrize('text, message', [
    ('train: [a', 'data.yaml: not YAML: .*line 1'), ('3', 'data.yaml: no description'), ('names: [ant, bee]', 'data.yaml: says nothing of train, val or test'), ('train: /etc\nnames: [ant, bee]', '/etc is absolute'), ('train: ../../etc\nnames: [ant, bee]', 'leaves the folder'),
    ('train: images/../../etc\nnames: [ant, bee]', 'leaves the folder'), ('train: train/pictures\nnames: [ant, bee]', 'data.yaml: train/pictures is not in .*say with path:'), ('train: train/images\nnames: [no, yes]', 'names of classes that are not text: False; True. Put them in quotes'),
    ('train: train/images\nnc: 3\nnames: [ant, bee]', 'which is not a list of 3'), ('train: train/images\nnames: [ant, ant]', 'the same name: ant'), ('train: train/images\nkpt_shape: [4, 3]\nnames: [ant, bee]', 'these are poses'),
    ('train: list.txt\nnames: [ant, bee]', '/etc/passwd is absolute'), ('path: /mnt/birds\ntrain: images\nnames: [ant, bee]', 'data.yaml, whose path: /mnt/birds is not there: images is not in'),
    ('path: ..\ntrain: train/images\nnames: [ant, bee]', 'data.yaml: its path: leads out of .*give this file instead of the folder'), ('train: short.txt\nnames: [ant, bee]', 'short.txt: 1 of 2 images are missing, such as .*z.png. Add'),
    ('train: train/images\nnames: {ant: 0, bee: 1}', 'which is not a list of')])
def test_bad_yaml(text, message, tmp_path):
    LAYOUTS['yolo roboflow'][0](tmp_path)
    write(tmp_path/'data.yaml', text)
    write(tmp_path/'list.txt', 'train/images/a.png\n/etc/passwd\n')
    write(tmp_path/'short.txt', 'train/images/a.png\ntrain/images/z.png')
    with pytest.raises((ValueError, FileNotFoundError), match=message): read_split(tmp_path, 'train', 'yolo')


def test_a_root_elsewhere_and_links_are_followed(tmp_path):
    LAYOUTS['yolo roboflow'][0](tmp_path/'data')
    write(tmp_path/'elsewhere/data.yaml', f'path: {tmp_path}/data\ntrain: train/images\nnames: [ant, bee]')
    assert len(read_split(tmp_path/'elsewhere/data.yaml', 'train')) == 2
    (tmp_path/'link').symlink_to(tmp_path/'data')
    (tmp_path/'data/extra').mkdir()
    (tmp_path/'data/train').rename(tmp_path/'far')
    (tmp_path/'data/train').symlink_to(tmp_path/'far')
    assert len(read_split(tmp_path/'link', 'train')) == 2


@pytest.mark.parametrize('write_data, message', [
    (lambda root: picture(root, 'a'), r'does not look like any format. Looked for \*.json.*Pascal VOC.*YOLO'),
    (both(LAYOUTS['voc in one folder'][0], LAYOUTS['yolo in one folder'][0]), r'looks like voc and like yolo. Say which to read, with format \(--format\)'),
    (both(LAYOUTS['voc roboflow'][0], every('{split}', '{split}/{name}.xml', voc)), 'more than one part for a split: val. Leave only one')])
def test_what_is_no_data_set_or_two(write_data, message, tmp_path):
    write_data(tmp_path)
    with pytest.raises(ValueError, match=message): find_splits(tmp_path)
    report = examine(tmp_path)
    assert not report.ready and re.search(message, report.faults[0].text)


@pytest.mark.parametrize('place, parts', [('{}/{}', ['images', 'images/train', 'labels/val', '../data/images']), ('{1}/{0}', ['train/images', 'val/labels'])], ids=['ultralytics', 'roboflow'])
def test_who_gives_a_part_of_a_data_set_is_told_which_folder_to_give(place, parts, tmp_path, monkeypatch):
    for split in ('train', 'val'):
        picture(tmp_path/'data'/place.format('images', split), 'a')
        write(tmp_path/'data'/place.format('labels', split)/'a.txt', '0 .5 .5 .2 .2')
    monkeypatch.chdir(tmp_path/'data')
    for part in (*parts, tmp_path/'data'/parts[0]):
        with pytest.raises(ValueError, match=f'does not look like any format.*Perhaps it is a part of {re.escape(str(tmp_path/"data"))}$'): find_splits(part)
    for folder in ('alone/images', 'twice/train/images', 'twice/train/labels', 'twice/val/images', 'twice/valid/images'): picture(tmp_path/folder, 'a')
    write(tmp_path/'alone/package.json', '{}')
    with pytest.raises(ValueError, match=r'\(YOLO\)$'): find_splits(tmp_path/'twice/train/images') # Of which val is, nobody knows
    with pytest.raises(ValueError, match=r'\(YOLO\)$'): find_splits(tmp_path/'alone/images')


def test_names_may_hold_marks_of_direction(tmp_path):
    picture(tmp_path/'images/train', 'a')
    write(tmp_path/'labels/train/a.txt', '0 .5 .5 .2 .2'); write(tmp_path/'classes.txt', 'كلب\u200f\n')
    assert read_split(tmp_path, 'train').names == ['كلب\u200f']


def test_empty_splits_can_be_read_and_are_named(tmp_path):
    both(LAYOUTS['voc official'][0], ('ImageSets/Main/train.txt', ''))(tmp_path/'voc')
    (tmp_path/'yolo/train/images').mkdir(parents=True)
    write(tmp_path/'yolo/data.yaml', 'train: train/images\nnames: [ant, bee]')
    write(tmp_path/'coco/annotations/instances_train.json', coco([]))
    for name in ('voc', 'yolo', 'coco'):
        annotations = read_split(tmp_path/name, 'train')
        assert (len(annotations), annotations.boxes.shape, annotations.starts.tolist(), annotations.names) == (0, (0, 4), [0], NAMES)
        assert [(f.kind, f.stops) for f in check(annotations)] == [('nothing to learn', True)]
        assert not examine(tmp_path/name).ready


# Images

def one(path, size):
    return Annotations(['ant'], np.array([str(path)]), np.array([size]), np.array([0, 1]), np.array([[0, 0, 1, 1]], dtype=np.float32), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool), np.ones(1, dtype=np.float32))


KINDS = {'gray.png': lambda i: i.convert('L'), 'gray.jpg': lambda i: i.convert('L'), 'rgba.png': lambda i: i.convert('RGBA'), 'palette.png': lambda i: i.quantize(), 'palette.gif': lambda i: i.quantize(), 'cmyk.jpg': lambda i: i.convert('CMYK'),
         'bits.png': lambda i: i.convert('1'), '16.png': lambda i: Image.fromarray(np.asarray(i.convert('L'), dtype=np.uint16)*257), '16.tif': lambda i: Image.fromarray(np.asarray(i.convert('L'), dtype=np.uint16)*257), 'rgb.webp': lambda i: i, 'rgb.bmp': lambda i: i}


@pytest.mark.parametrize('name', KINDS)
def test_images_of_every_kind(name, tmp_path):
    smooth = Image.fromarray(np.linspace(0, 255, WIDTH).astype(np.uint8)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)) # Grey from black to white
    KINDS[name](smooth).save(tmp_path/name)
    image = read_annotated(one(tmp_path/name, (HEIGHT, WIDTH)), 0)
    assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
    if name != 'bits.png': assert np.abs(image.numpy().astype(int) - np.asarray(smooth).transpose(2, 0, 1)).max() <= 16
    assert not look_at_images(dict(train=one(tmp_path/name, (HEIGHT, WIDTH))))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_rotated_images(orientation, tmp_path):
    "The size in YOLO's format is that of the upright image, and COCO's may be either"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels('a')).save(tmp_path/'a.jpg', exif=exif)
    write(tmp_path/'a.txt', '0 .25 .25 .5 .5')
    upright = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
    found = read_yolo(tmp_path, ['ant'])
    assert tuple(found.sizes[0]) == upright and found.boxes.tolist() == [[0, 0, upright[1]/2, upright[0]/2]]
    for size in {upright, (HEIGHT, WIDTH)}: assert read_annotated(one(tmp_path/'a.jpg', size), 0).shape[1:] == size


def test_one_pixel(tmp_path):
    Image.new('RGB', (1, 1), (1, 2, 3)).save(tmp_path/'a.png')
    write(tmp_path/'a.txt', '0 .5 .5 1 1')
    found = read_yolo(tmp_path, ['ant'])
    assert read_annotated(found, 0).flatten().tolist() == [1, 2, 3] and found.boxes.tolist() == [[0, 0, 1, 1]]


def broken(kind):
    data = io.BytesIO()
    Image.fromarray(pixels('a')).save(data, 'jpeg' if kind == 'jpg' else kind)
    data = data.getvalue()
    return {'half': data[:len(data)//2], 'noise': b'\x00'*999, 'empty': b'', 'hole': data[:len(data)//3] + b'\x00'*(len(data)//3) + data[len(data)//3*2:]}


@pytest.mark.parametrize('kind', ['jpg', 'png'])
@pytest.mark.parametrize('how', ['half', 'noise', 'empty', 'hole'])
def test_images_that_do_not_decode_are_named(kind, how, tmp_path):
    path = tmp_path/f'a.{kind}'
    path.write_bytes(broken(kind)[how])
    if (kind, how) == ('jpg', 'hole'): # JPEG has no checksum: it decodes, to other pixels
        assert read_annotated(one(path, (HEIGHT, WIDTH)), 0).shape == (3, HEIGHT, WIDTH) and not look_at_images(dict(train=one(path, (HEIGHT, WIDTH))))
        return
    with pytest.raises(OSError, match=rf'a.{kind} cannot be decoded as an image .*: fix or remove it'): read_annotated(one(path, (HEIGHT, WIDTH)), 0)
    assert [(f.kind, f.stops) for f in look_at_images(dict(train=one(path, (HEIGHT, WIDTH))))] == [('image does not decode', True)]
    write(tmp_path/'a.txt', '0 .5 .5 1 1')
    if how in ('noise', 'empty'): # Not even a head, where YOLO's format needs one
        with pytest.raises(ValueError, match=f'files that cannot be opened as images: .*a.{kind}.*Fix or remove them'): read_yolo(tmp_path, ['ant'])


def test_pictures_in_two_splits_are_found_by_their_pixels(tmp_path):
    LAYOUTS['voc official'][0](tmp_path)
    Image.fromarray(pixels('a')).save(tmp_path/'JPEGImages/c.png', compress_level=0) # Other bytes, same pixels
    faults = [f for f in examine(tmp_path).faults if f.stops]
    assert [f.kind for f in faults] == ['copy in another split'] and 'c.png in val has the same pixels as JPEGImages/a.png in train' in faults[0].text
    (tmp_path/'JPEGImages/c.png').unlink()
    (tmp_path/'JPEGImages/c.png').symlink_to(tmp_path/'JPEGImages/a.png')
    assert [f.kind for f in examine(tmp_path).faults if f.stops] == ['image in two splits']
    write(tmp_path/'ImageSets/Main/train.txt', 'a\nb\nc\n')
    write(tmp_path/'ImageSets/Main/val.txt', 'b\n')
    report = examine(tmp_path)
    assert [f.kind for f in report.faults if f.stops or f.kind == 'duplicate image'] == ['nothing to learn', 'image in two splits', 'duplicate image']
    assert list(fault_lines(check_splits(report.splits))) == ['image in two splits (1): b.png is in train and in val']


CROWDS = {**coco(['c']), 'annotations': [dict(a, iscrowd=1) for a in coco(['c'])['annotations']]}
VERDICTS = { # What is written, options, which splits training takes, and what the doctor says must be fixed
    'train and val': (LAYOUTS['coco official'][0], {}, ['train', 'val'], []),
    'trainval and test': (both(LAYOUTS['voc official'][0], ('ImageSets/Main/test.txt', 'c'), ('ImageSets/Main/trainval.txt', 'a\nb'), *[(f'ImageSets/Main/{s}.txt', None) for s in ('ant_train', *SPLITS)]), {}, ['trainval', 'test'], []),
    'trainval without objects': (both(LAYOUTS['voc official'][0], ('ImageSets/Main/test.txt', 'c'), ('ImageSets/Main/trainval.txt', 'b'), *[(f'ImageSets/Main/{s}.txt', None) for s in ('ant_train', *SPLITS)]), {}, ['trainval', 'test'], ['nothing to learn']),
    'trainval in place of train': (both(LAYOUTS['voc official'][0], ('ImageSets/Main/test.txt', 'c'), ('ImageSets/Main/trainval.txt', 'a\nb'), ('ImageSets/Main/val.txt', 'b')), dict(train='trainval', val='test'), ['trainval', 'test'], []),
    'test without objects': (both(LAYOUTS['voc official'][0], ('ImageSets/Main/test.txt', 'b'), ('ImageSets/Main/train.txt', 'a')), {}, ['train', 'val', 'test'], []),
    'test without objects, to validate on': (both(LAYOUTS['voc official'][0], ('ImageSets/Main/test.txt', 'b'), ('ImageSets/Main/train.txt', 'a'), ('ImageSets/Main/val.txt', None)), {}, ['train', 'test'], ['nothing to learn']),
    'crowds alone': (both(LAYOUTS['coco official'][0], ('annotations/instances_val2017.json', CROWDS)), {}, ['train', 'val'], ['nothing to learn']),
    'one split': (LAYOUTS['coco cvat task'][0], {}, ['all'], []),
    'one image': (both(LAYOUTS['coco cvat task'][0], ('annotations/instances_default.json', coco(['a', 'b']))), {}, ['all'], ['too few images']),
    'other names': (both(every('images'), *[(f'birds_{s}.json', coco(n)) for s, n in SPLITS.items()]), {}, ['birds_train', 'birds_val'], ['no training split']),
    'other names, chosen': (both(every('images'), *[(f'birds_{s}.json', coco(n)) for s, n in SPLITS.items()]), dict(train='birds_val', val='birds_train'), ['birds_val', 'birds_train'], []),
    'a name that is not there': (LAYOUTS['coco official'][0], dict(val='vaal'), ['train', 'val'], ['no training split']),
    'broken val': (both(LAYOUTS['coco official'][0], ('annotations/instances_val2017.json', '{"annotations"')), {}, ['train'], ['cannot be read']),
}


@pytest.mark.parametrize('name', VERDICTS)
def test_the_doctor_says_what_training_would_do(name, tmp_path):
    layout, options, splits, faults = VERDICTS[name]
    layout(tmp_path)
    report = examine(tmp_path, **options)
    assert list(report.splits) == splits and [f.kind for f in report.faults if f.stops] == faults
    try: prepare_splits(tmp_path, quiet=True, **options)
    except ValueError: assert not report.ready
    else: assert report.ready


def test_the_doctor_stops_at_once(monkeypatch):
    looked = []
    monkeypatch.setattr(doctor, '_pixel_hash', lambda a, i: looked.append(i) or b'%d' % i)
    many = Annotations(['ant'], np.array([f'{i}.png' for i in range(9999)]), np.full((9999, 2), 9), np.zeros(10000, dtype=int), np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros(0, dtype=bool), np.zeros(0))
    def interrupted(images):
        yield images[0]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): look_at_images(dict(train=many), interrupted)
    assert len(looked) <= 16*os.cpu_count()
    looked.clear()
    assert not look_at_images(dict(train=many)) and sorted(looked) == list(range(9999))


def test_the_doctor_as_a_command(tmp_path):
    LAYOUTS['yolo roboflow'][0](tmp_path/'data')
    write(tmp_path/'yolox_doctor.py', 'from cjm_yolox_pytorch.evaluation.doctor import yolox_doctor\nyolox_doctor()')
    def run(*args): return subprocess.run([sys.executable, tmp_path/'yolox_doctor.py', *map(str, args)], capture_output=True, text=True)
    done = run(tmp_path/'data', '--out', tmp_path/'out')
    assert done.returncode == 0 and done.stdout.endswith('ready to train\n')
    assert json.loads((tmp_path/'out/doctor.json').read_text())['splits']['train']['classes'] == dict(ant=1, bee=1) and Image.open(tmp_path/'out/doctor.png').size[0] == 1200
    done = run(tmp_path/'data', '--format', 'coco', '--json')
    assert done.returncode == 1 and 'does not look like coco' in json.loads(done.stdout)['faults'][0]['text'] and 'Traceback' not in done.stderr
    (tmp_path/'data/train/images/a.png').write_bytes(broken('png')['half'])
    done = run(tmp_path/'data')
    assert done.returncode == 1 and 'a.png cannot be decoded' in re.sub(r'\s+', ' ', done.stdout) and 'Traceback' not in done.stderr


# Host memory

def test_workers_do_not_copy_annotations():
    "Arrays hold all that there is many of, so that a forked process that reads every object gets no pages of its own"
    if not Path('/proc/self/smaps_rollup').exists(): pytest.skip('measures with Linux')
    N, each = 100_000, 7
    a = Annotations(['ant'], np.array([f'/a/folder/{i:012}.jpg' for i in range(N)]), np.full((N, 2), 480), np.arange(N + 1)*each, np.zeros((N*each, 4), dtype=np.float32), np.zeros(N*each, dtype=np.int64), np.zeros(N*each, dtype=bool), np.zeros(N*each, dtype=np.float32))
    assert sum(v.nbytes for v in vars(a).values() if isinstance(v, np.ndarray)) < 50e6 and len(a.names) + len(a.dropped) + len(a.notes) == 1
    def private(): return 1024*int(re.search(r'Private_Dirty:\s+(\d+)', Path('/proc/self/smaps_rollup').read_text())[1])
    def grown(touch): # Bytes of its own that a forked process has after it has touched every image
        gc.collect()
        read, end = os.pipe()
        if (child := os.fork()) == 0:
            before = private()
            for i in range(N): touch(i)
            os.write(end, str(private() - before).encode())
            os._exit(0)
        os.waitpid(child, 0)
        return int(os.read(read, 99))
    objects = [Path(p) for p in a.paths.tolist()]
    assert grown(lambda i: (a.paths[i], a.sizes[i], a.objects(i))) < 4e6 < grown(lambda i: objects[i])


@pytest.mark.parametrize('box, seen', [([-50.3, 10, 50.30001, 20], 0), ([79.995, 10, 10, 20], 0), ([40, 10, 3e-5, 20], 0), ([40, 10, .02, 20], 1), ([-5, 10, 5.5, 20], 1)])
def test_slivers_are_left_out(box, seen, tmp_path):
    "Which the doctor has to know, since mirrored or scaled they would have no area, in the middle of a training"
    for name in 'ab': picture(tmp_path, name)
    doc = coco(['a', 'b'])
    doc['annotations'].append(dict(id=99, image_id=doc['images'][1]['id'], category_id=doc['categories'][0]['id'], bbox=box, area=1, iscrowd=0))
    write(tmp_path/'train.json', doc)
    a, = (read() for read in find_splits(tmp_path).values())
    assert len(a.objects(1)[0]) == seen and [why for *_, why in a.dropped] == ['is too thin in the image of 80x60']*(1 - seen)
    for size in (32, 64, 416):
        for flip in (0, 1): DetectionDataset(a, size, [v2.RandomHorizontalFlip(flip)])[1]


def test_labels_that_may_not_be_read_are_not_missing(tmp_path, monkeypatch):
    "As root reads everything, the system is replaced"
    picture(tmp_path/'images', 'a')
    write(tmp_path/'labels/a.txt', '0 .5 .5 .1 .1')
    real = os.stat
    def stat(path, *args, **kwargs):
        if str(path).endswith('a.txt'): raise PermissionError(13, 'Permission denied', str(path))
        return real(path, *args, **kwargs)
    monkeypatch.setattr(os, 'stat', stat)
    with pytest.raises(PermissionError, match='a.txt'): read_yolo(tmp_path/'images', ['ant'])


def test_names_of_classes_with_the_same_beginning_have_a_bar_each(tmp_path):
    from matplotlib.figure import Figure
    for name in 'ab': picture(tmp_path, name)
    write(tmp_path/'train.json', coco(['a', 'b']))
    report = examine(tmp_path)
    split, a = next(iter(report.splits.items()))
    report.splits[split] = replace(a, names=['the same beginning, one', 'the same beginning, two'])
    ax = Figure().subplots()
    dataset_figure._draw_classes(ax, report.splits, 416)
    assert sorted(round(p.get_y() + p.get_height()/2) for p in ax.patches) == [0, 1]


@pytest.mark.parametrize('size', [0, -5])
def test_the_doctor_needs_a_size(size, tmp_path):
    with pytest.raises(ValueError, match=f'img_size={size}: at least 1 is needed'): doctor.yolox_doctor(str(tmp_path), img_size=size)


# What was read without a word, as something else

LINE = '0 .5 .5 .2 .2\n'


def files(root, **kinds):
    "Write `a` as a picture and `a.txt` or `a.xml` beside it for each path; of other files the text"
    for path, text in kinds.items():
        if '.' not in Path(path).name: picture((root/path).parent, Path(path).name)
        else: write(root/path, text)


def labelled(*paths): return {name: text for path in paths for name, text in {path: None, f'{path}.txt': LINE}.items()}
def described(*paths): return {name: text for path in paths for name, text in {path: None, f'{path}.xml': voc(Path(path).name)}.items()}


APART = {**labelled('images/train/a', 'images/val/c'), 'classes.txt': 'ant'}
WHOLE = {'JPEGImages/a': None, 'Annotations/a.xml': voc('a')}
PLACES = { # What is written, and the splits found there or the message
    'training and validation': ({**labelled('training/a', 'validation/c'), 'classes.txt': 'ant'}, ['train', 'val']),
    'training and validation, of images': (labelled('images/training/a', 'images/validation/c'), ['train', 'val']),
    'training and testing in VOC': (described('training/a', 'testing/c'), ['test', 'train']),
    'a test that has no labels': ({**APART, 'test/b': None}, ['train', 'val']),
    'a test with labels': ({**APART, **labelled('test/b')}, 'annotated images lie in places that do not belong together: .*/test/b.png; .*/images/train/a.png. Take away'),
    'a val of predictions': ({**APART, **labelled('val/b')}, '/val/b.png; .*/images/train/a.png'),
    'an empty train': ({**labelled('images/a'), 'train/x.md': ''}, ['all']),
    'images around train': (labelled('train/a', 'b'), '/train/a.png; .*/b.png'),
    'images around images': (labelled('images/a', 'b'), '/images/a.png; .*/b.png'),
    'pictures around images': ({**labelled('images/a'), 'b': None}, ['all']),
    'VOC with a test that has no XML': ({**WHOLE, 'test/b': None}, ['all']),
    'VOC with a test': ({**WHOLE, **described('test/b')}, '/test/b.xml; .*/Annotations/a.xml'),
    'VOC around train': (described('train/a', 'b'), '/train/a.xml; .*/b.xml'),
    'VOC, train beside images/train': ({'train/a.xml': voc('a'), 'images/train/a': None}, ['train']),
}


@pytest.mark.parametrize('name', PLACES)
def test_places_of_images(name, tmp_path):
    what, found = PLACES[name]
    files(tmp_path, **what)
    if isinstance(found, list): assert sorted(find_splits(tmp_path)) == found and all(len(read()) == 1 for read in find_splits(tmp_path).values())
    else:
        with pytest.raises(ValueError, match=found): find_splits(tmp_path)


@pytest.mark.parametrize('split', ['val', 'test', 'validation'])
def test_what_is_kept_for_the_end_is_not_learnt_from_unasked(split, tmp_path):
    files(tmp_path, **labelled(f'{split}/a', f'{split}/b'))
    report = examine(tmp_path)
    assert [f.kind for f in report.faults if f.stops] == ['no training split'] and 'none of them is called train: say which to take with --train' in report.faults[0].text
    assert examine(tmp_path, train=split).ready


def test_json_files_beside_exports_are_not_forgotten(tmp_path):
    for name in 'ac': picture(tmp_path/'images', name)
    write(tmp_path/'annotations/instances_train.json', coco(['a']))
    write(tmp_path/'annotations/val.json', coco(['c']))
    write(tmp_path/'annotations/captions_val.json', coco(['c']))
    assert {s: [Path(p).stem for p in read().paths] for s, read in find_splits(tmp_path).items()} == dict(train=['a'], val=['c'])
    assert read_split(tmp_path, 'train').notes == ['1 other JSON files with annotations are not read, such as captions_val.json']
    LAYOUTS['coco roboflow'][0](tmp_path/'export')
    write(tmp_path/'export/val.json', coco(['c']))
    write(tmp_path/'export/test.json', '{}') # Of another program
    assert {'val'} <= set(found := find_splits(tmp_path/'export')) and 'test' not in found
    assert found['val']().notes[-1:] == ['2 other JSON files with annotations are not read, such as test.json']


def test_the_parent_of_exports_is_no_data_set(tmp_path):
    "Classes of two would become one, and splits would be mixed"
    LAYOUTS['yolo roboflow'][0](tmp_path/'one/bees')
    LAYOUTS['yolo cvat 1.1'][0](tmp_path/'two/bees')
    for folder in ('one', 'two'):
        with pytest.raises(ValueError, match=r'names no classes, but there are descriptions below it: .*/bees/(data.yaml|obj.data). Give the folder'): read_split(tmp_path/folder, 'all')
    files(tmp_path/'three', **labelled('day/a', 'night/c'), **{'day/classes.txt': 'ant\nbee'})
    assert read_split(tmp_path/'three', 'all').names == NAMES
    write(tmp_path/'three/night/classes.txt', 'bee\nant')
    with pytest.raises(ValueError, match='lists of classes differ'): read_split(tmp_path/'three', 'all')


@pytest.mark.parametrize('place', ['images/classes.txt', 'Classes.txt', 'labels/CLASSES.TXT', 'images/train/classes.txt', 'obj.names', 'images/day/classes.txt'])
def test_where_classes_are_named(place, tmp_path):
    files(tmp_path, **labelled('images/train/a', 'images/val/c'), **{place: 'ant\nbee\n'})
    assert [read_split(tmp_path, split).names for split in SPLITS] == [NAMES]*2
    (tmp_path/place).unlink()
    assert read_split(tmp_path, 'val').notes == [f'nothing names the classes (looked for classes.txt, obj.names, _darknet.labels in {tmp_path}), so they are called by their numbers']


@pytest.mark.parametrize('text, message', [('train: images', None), ('train: images\nnc: 2', None), ('train: images\nnc: 3', 'which is not a list of 3')])
def test_a_yaml_without_names_beside_a_list_of_them(text, message, tmp_path):
    files(tmp_path, **labelled('images/a'), **{'classes.txt': 'ant\nbee', 'data.yaml': text})
    if message is None: assert read_split(tmp_path, 'train').names == NAMES
    else:
        with pytest.raises(ValueError, match=message): read_split(tmp_path, 'train')


def test_darknet_counts_its_classes(tmp_path):
    LAYOUTS['yolo cvat 1.1'][0](tmp_path)
    write(tmp_path/'obj.data', 'classes = 7\ntrain = data/train.txt\nnames = data/obj.names')
    with pytest.raises(ValueError, match='which is not a list of 7'): read_split(tmp_path, 'train')


@pytest.mark.parametrize('layout, file', [('yolo images/train', 'classes.txt'), ('yolo cvat 1.1', 'obj.names')])
def test_a_blank_line_is_no_class(layout, file, tmp_path):
    LAYOUTS[layout][0](tmp_path)
    write(tmp_path/file, 'ant\nbee\n\n \n')
    assert read_split(tmp_path, 'train').names == NAMES
    write(tmp_path/file, 'ant\n\nbee\n')
    with pytest.raises(ValueError, match=f'{file}: lines without a name, by which classes are counted: line 2'): read_split(tmp_path, 'train')


def test_two_images_do_not_share_a_label_file(tmp_path):
    files(tmp_path, **labelled('a'), **{'a.jpg': b''})
    with pytest.raises(ValueError, match='images that differ in nothing but their suffix: .*a.jpg, .*a.png. Leave one of them there'): read_yolo(tmp_path, ['ant'])


@pytest.mark.parametrize('more', ['.45 .45', '.45 .46 '*17, '.45 .45 0 0 .55 .52', '.45 .45 1 .55 .55 0', '.45 .45 2 .55 .55 2', '.93 1', '.93 7'])
def test_poses_and_tracks_are_no_outlines(more, tmp_path):
    files(tmp_path, **labelled('a'))
    write(tmp_path/'a.txt', f'0 .5 .5 .2 .2 {more}\n'*5)
    with pytest.raises(ValueError, match='[Kk]eep the first 5 numbers'): read_yolo(tmp_path, ['ant'])


@pytest.mark.parametrize('outline', ['.3 .3 .1 .1 .3 .34', '.5 .5 .3 .2 .6 1.0', '.5 .4 .2 .7 .4 0', '.9 .9 1.12 .9 1 1'])
def test_a_few_outlines_among_boxes_are_outlines(outline, tmp_path):
    "Although each could be a box with a point"
    files(tmp_path, **labelled('a'))
    write(tmp_path/'a.txt', f'0 {outline}\n'*2 + '0 .5 .5 .2 .2\n'*5)
    assert len(read_yolo(tmp_path, ['ant']).labels) == 7


def test_outlines_are_read_wherever_they_lie(tmp_path):
    "Over the border by a little, and in the middle, where the first numbers might be a box"
    files(tmp_path, **labelled('a'))
    for centre in [(x/10, y/10) for x in range(11) for y in range(11)]:
        angle = np.linspace(0, 2*np.pi, 12, endpoint=False)
        corners = np.stack([centre[0] + .09*np.cos(angle), centre[1] + .09*np.sin(angle)], 1)
        write(tmp_path/'a.txt', f'0 {" ".join(f"{v:.4f}" for v in corners.ravel())}')
        assert len(read_yolo(tmp_path, ['ant']).labels) == 1, centre


@pytest.mark.parametrize('line', ['0 .1 .1 .5 nan nan .5 .2 .3', '0 .1 .1 .5 inf .2 .3', '1_0 .5 .5 .2 .2', '0 .5 .5 .2 0.1_5', '٣ .5 .5 .1 .1', '0 .5 .5 .1 .٣'])
def test_what_is_no_number(line, tmp_path):
    files(tmp_path, **labelled('a'))
    write(tmp_path/'a.txt', line)
    with pytest.raises(ValueError, match='a.txt line 1: (could not convert|nan is no fraction|inf is no fraction)'): read_yolo(tmp_path)
    LAYOUTS['voc official'][0](tmp_path/'voc')
    write(tmp_path/'voc/Annotations/a.xml', voc('a').replace('<xmin>9<', f'<xmin>{"1_0" if "_" in line else "٣"}<'))
    with pytest.raises(ValueError, match='is .* and not a number'): read_split(tmp_path/'voc', 'train')


def test_fractions_are_no_pixels(tmp_path):
    LAYOUTS['coco cvat task'][0](tmp_path/'coco')
    doc = coco(EVERYTHING)
    for a in doc['annotations']: a['bbox'] = [.1, .2, .5, .6]
    write(tmp_path/'coco/annotations/instances_default.json', doc)
    LAYOUTS['voc in one folder'][0](tmp_path/'voc')
    for name in EVERYTHING: write(tmp_path/f'voc/{name}.xml', re.sub(r'<(x|y)(min|max)>\d+', lambda m: f'<{m[1]}{m[2]}>{dict(min=.2, max=.7)[m[2]]}', voc(name)))
    for name in ('coco', 'voc'):
        with pytest.raises(ValueError, match='no box ends beyond 1, so these are fractions of the images. Write boxes in pixels'): read_split(tmp_path/name, 'all')


def test_a_box_that_begins_at_0_says_how_pixels_are_counted(tmp_path):
    "Even if another one is over the border"
    LAYOUTS['voc cvat'][0](tmp_path)
    write(tmp_path/'Annotations/c.xml', voc('c', 0).replace('<xmin>40<', '<xmin>-3<'))
    found = read_split(tmp_path, 'all')
    assert found.objects(0)[0].tolist() == [[*o[1:]] for o in OBJECTS['a']] and 'counted from 0' in found.notes[0]


def test_labels_of_another_data_set_are_not_taken(tmp_path):
    root = tmp_path/'images/ds'
    files(root, **labelled('a'), **{'classes.txt': 'ant'})
    write(tmp_path/'labels/ds/a.txt', '0 .1 .1 .1 .1')
    assert read_split(root, 'all').boxes.tolist() == [[32, 24, 48, 36]] # Of the file beside the image
    write(root/'data.yaml', 'train: .\nnames: [ant]')
    assert read_split(root, 'train').boxes.tolist() == [[32, 24, 48, 36]]
    write(tmp_path/'data.yaml', 'path: images\ntrain: ds\nnames: [ant]') # Here the folder of labels is a part of the data
    assert read_split(tmp_path/'data.yaml', 'train').boxes.round().tolist() == [[4, 3, 12, 9]]


def test_a_key_is_not_there_twice(tmp_path):
    files(tmp_path/'short', **labelled('images/a'), **{'data.yaml': 'train: &t images\nval: *t\nnames: [ant]'}) # A name for a place does no harm
    assert list(find_splits(tmp_path/'short')) == ['train', 'val']
    files(tmp_path, **labelled('images/a'), **{'data.yaml': 'train: images\nnames:\n  0: ant\n  0: bee'})
    with pytest.raises(ValueError, match='data.yaml: not YAML: 0 is there twice'): find_splits(tmp_path)


def test_an_image_is_no_list_of_images(tmp_path):
    files(tmp_path, **labelled('images/a'), **{'data.yaml': 'train: images/a.png\nnames: [ant]'})
    with pytest.raises(ValueError, match='data.yaml: images/a.png is an image. Write a folder of images there, or a text file that lists them'): read_split(tmp_path, 'train')


def test_kinds_of_images_that_are_not_read_are_named(tmp_path):
    files(tmp_path, **{'images/a': None, 'labels/a.txt': LINE, 'images/b.heic': b'', 'labels/b.txt': LINE})
    assert read_yolo(tmp_path/'images', ['ant']).notes == [f'1 label files without an image are left out, such as {tmp_path}/labels/b.txt; b.heic is of no kind that is read']


def test_xml_in_an_encoding_of_several_bytes(tmp_path):
    LAYOUTS['voc in one folder'][0](tmp_path)
    write(tmp_path/'a.xml', ('<?xml version="1.0" encoding="gb2312"?>' + voc('a').replace('ant', '猫')).encode('gb2312'))
    with pytest.raises(ValueError, match='a.xml: not XML: multi-byte encodings are not supported. Save it as UTF-8'): read_split(tmp_path, 'all')


# Upright

def chunk(kind, data): return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></x:xmpmeta>'


def png_with(data, kind, inside, late):
    place = data.rindex(b'IEND') - 4 if late else data.index(b'IDAT') - 4
    return data[:place] + chunk(kind, inside) + data[place:]


NOTES = { # Where the orientation stands: suffix, mode, what to save with, and what to do to the bytes of a PNG
    'EXIF': ('jpg', 'RGB', lambda o, exif: dict(exif=exif), None), 'EXIF, grey': ('jpg', 'L', lambda o, exif: dict(exif=exif), None),
    'XMP': ('jpg', 'RGB', lambda o, exif: dict(xmp=XMP.format(o).encode()), None), 'XMP, grey': ('jpg', 'L', lambda o, exif: dict(xmp=XMP.format(o).encode()), None),
    'EXIF in PNG': ('png', 'RGB', lambda o, exif: dict(exif=exif), None), 'EXIF in WebP': ('webp', 'RGB', lambda o, exif: dict(exif=exif, lossless=True), None), 'XMP in WebP': ('webp', 'RGB', lambda o, exif: dict(xmp=XMP.format(o).encode(), lossless=True), None),
    'TIFF': ('tif', 'RGB', lambda o, exif: dict(tiffinfo={274: o}), None), 'TIFF, packed': ('tif', 'RGB', lambda o, exif: dict(tiffinfo={274: o}, compression='tiff_lzw'), None), 'TIFF, grey': ('tif', 'L', lambda o, exif: dict(tiffinfo={274: o}), None),
    'XMP in PNG': ('png', 'RGB', lambda o, exif: {}, lambda data, o, exif: png_with(data, b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP.format(o).encode(), False)),
    'behind the pixels of a PNG': ('png', 'RGB', lambda o, exif: {}, lambda data, o, exif: png_with(data, b'eXIf', exif.tobytes()[6:], True))}


@pytest.mark.parametrize('orientation', [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize('name', NOTES)
def test_training_and_prediction_see_the_same_picture(name, orientation, tmp_path):
    "The size that boxes are scaled by is that of the picture, which is turned by one rule for all"
    suffix, mode, options, changed = NOTES[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new(mode, (WIDTH, HEIGHT))
    stored.paste(Image.new(mode, (WIDTH//2, HEIGHT//2), 'white')) # Top left
    stored.save(tmp_path/f'a.{suffix}', **options(orientation, exif))
    if changed: (tmp_path/f'a.{suffix}').write_bytes(changed((tmp_path/f'a.{suffix}').read_bytes(), orientation, exif))
    write(tmp_path/'a.txt', '0 .25 .25 .5 .5')
    turned = 1 if 'behind' in name else orientation # That one is not seen in time
    a = read_yolo(tmp_path, ['ant'])
    seen = read_image(tmp_path/f'a.{suffix}')
    assert torch.equal(read_annotated(a, 0), seen) and torch.equal(as_image(Image.open(tmp_path/f'a.{suffix}')), seen)
    assert tuple(a.sizes[0]) == seen.shape[1:] == ((HEIGHT, WIDTH) if turned < 5 else (WIDTH, HEIGHT))
    lit = (seen.float().mean(0).unflatten(1, (2, -1)).unflatten(0, (2, -1)).mean((1, 3)) > 128).int().tolist()
    assert lit == {1: [[1, 0], [0, 0]], 2: [[0, 1], [0, 0]], 3: [[0, 0], [0, 1]], 6: [[0, 1], [0, 0]], 7: [[0, 0], [0, 1]], 8: [[0, 0], [1, 0]]}[turned]
    flat = read_image(tmp_path/f'a.{suffix}', upright=False).float().mean(0)
    assert flat.shape == (HEIGHT, WIDTH) and flat[:HEIGHT//2, :WIDTH//2].mean() > 250


def test_an_orientation_that_cannot_be_read_turns_nothing(tmp_path):
    for mode in ('RGB', 'L'):
        Image.new(mode, (WIDTH, HEIGHT)).save(tmp_path/'a.jpg', exif=b'Exif\0\0no TIFF at all')
        assert read_image(tmp_path/'a.jpg').shape[1:] == (HEIGHT, WIDTH) and data.stored_sizes('', [tmp_path/'a.jpg']).tolist() == [[HEIGHT, WIDTH]]


def test_a_training_in_the_folder_of_its_data_adds_nothing_to_it(tmp_path):
    "Nor does an evaluation: their pictures would become images without objects, and the data others than those of the state"
    files(tmp_path, **labelled('a', 'c'))
    before = read_split(tmp_path, 'all').paths.tolist()
    for name in ('one/state.pt', 'one/metrics.csv', 'one/worst.png', 'one/curves.png', 'test/metrics.json', 'test/worst.png'): write(tmp_path/'runs'/name, '')
    assert read_split(tmp_path, 'all').paths.tolist() == before
    assert len(files_below(tmp_path/'runs/one', '.png')) == 2 # Who asks for it gets it
