"Small datasets as tools write them: three images in every layout of COCO, Pascal VOC and YOLO."
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from cjm_yolox_pytorch.data.annotations import build_annotations

WIDTH, HEIGHT = 80, 60
NAMES = ['ant', 'bee']
# xyxy in pixels
OBJECTS = {'a': [('bee', 8, 6, 40, 30), ('ant', 0, 0, 16, 12)], 'b': [], 'c': [('ant', 40, 30, 80, 60)]}
SPLITS = dict(train=['a', 'b'], val=['c'])
EVERYTHING = ['a', 'b', 'c']
LINE = '0 .5 .5 .2 .2\n'


def pixels(name): return np.random.default_rng(ord(name)).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def write(path, text, encoding='utf-8'):
    "Write text, bytes or a dictionary as JSON; delete the file for None"
    if text is None: return path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(text, (str, bytes)): text = json.dumps(text)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))


def write_image(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(name)).save(folder/f'{name}.png')


def one_image(path, size, boxes=((0, 0, 1, 1),)):
    "Annotations of an image of `size` (height, width)"
    return build_annotations('one', ['ant'], [path], [size], [(0, 0, *box) for box in boxes])


def stems(annotations): return [Path(p).stem for p in annotations.paths]


# The three formats

def coco(names, first=1, parent=False, folder=''):
    "COCO's dictionary for the images `names`, with classes numbered from `first`"
    categories = [dict(id=n + first, name=c, supercategory='insects') for n, c in enumerate(NAMES)]
    if parent: categories.insert(0, dict(id=0, name='insects', supercategory='none'))
    images = [dict(id=n, file_name=f'{folder}{name}.png', width=WIDTH, height=HEIGHT) for n, name in enumerate(names)]
    annotations = []
    for n, name in enumerate(names):
        for c, x1, y1, x2, y2 in OBJECTS[name]:
            w, h = x2 - x1, y2 - y1
            annotations.append(dict(id=len(annotations), image_id=n, category_id=NAMES.index(c) + first,
                                    bbox=[x1, y1, w, h], area=w*h, iscrowd=0, segmentation=[]))
    return dict(images=images, categories=categories, annotations=annotations)


def voc(name, first=1, filename=None):
    "XML for an image, counting pixels from `first`"
    rows = ''.join(f'<object><name>{c}</name><bndbox><xmin>{x1 + first}</xmin><ymin>{y1 + first}</ymin>'
                   f'<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>' for c, x1, y1, x2, y2 in OBJECTS[name])
    size = f'<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>'
    return f'<annotation><filename>{filename or name + ".png"}</filename>{size}{rows}</annotation>'


def csv(names, order='fwhc1234', delimiter=',', header=True):
    "Lines for images, with a line of empty fields for one without objects; `order` has a letter for each column"
    titles = dict(zip('fwhc1234', 'filename width height class xmin ymin xmax ymax'.split()))
    lines = [[titles[letter] for letter in order]] if header else []
    for name in names:
        for c, *box in OBJECTS[name] or [('', *['']*4)]:
            fields = dict(zip('fwhc1234', [f'{name}.png', WIDTH, HEIGHT, c, *box]))
            lines.append([str(fields[letter]) for letter in order])
    return ''.join(delimiter.join(line) + '\n' for line in lines)


def csv_bare(names): return csv(names, 'f1234c', header=False)


def yolo(name, first=0, outline=False):
    "Lines for an image, with classes numbered from `first`"
    def line(c, x1, y1, x2, y2):
        shape = [(x1 + x2)/2, (y1 + y2)/2, x2 - x1, y2 - y1]
        if outline: shape = [x1, y1, x2, y1, x2, y2, x1, y2]
        fractions = [v / (HEIGHT if n % 2 else WIDTH) for n, v in enumerate(shape)]
        return ' '.join(map(str, [NAMES.index(c) + first, *fractions])) + '\n'
    return ''.join(line(*o) for o in OBJECTS[name])


def yolo_from_1(name): return yolo(name, first=1)
def yolo_outlines(name): return yolo(name, outline=True)
def voc_from_0(name): return voc(name, first=0)


# Functions that write a dataset into a folder

def every(images, annotations=None, text=None):
    "Write images and annotations into the folders that are named after `split` and `name`"
    def layout(root):
        for split, names in SPLITS.items():
            for name in names:
                write_image(root/images.format(split=split), name)
                if annotations: write(root/annotations.format(split=split, name=name), text(name))
    return layout


def roboflow(images, annotations=None, text=None):
    "With a folder `valid`"
    def layout(root):
        every(images, annotations, text)(root)
        (root/'val').rename(root/'valid')
    return layout


def both(*parts):
    "Functions, and pairs of a path and its text"
    def layout(root):
        for part in parts: part(root) if callable(part) else write(root/part[0], part[1])
    return layout


def write_files(root, files):
    "Write an image where the path has no suffix, and the text elsewhere"
    for path, text in files.items():
        if Path(path).suffix: write(root/path, text)
        else: write_image((root/path).parent, Path(path).name)


def labeled(*paths, text=lambda name: LINE, suffix='.txt'):
    "Images, and a file beside each"
    return {p: t for path in paths for p, t in [(path, None), (path + suffix, text(Path(path).name))]}


def labeled_voc(*paths): return labeled(*paths, text=voc, suffix='.xml')


def for_each_split(path, text):
    "Pairs of a path and its text; `text` is called with the names of images"
    return [(path.format(split=s, s=s), text(s, names)) for s, names in SPLITS.items()]


def listing(images, text='{name}'):
    "A file of a line for each image"
    return for_each_split(images, lambda split, names: '\n'.join(text.format(split=split, name=n) for n in names))


def absolute(root):
    every('images/{split}', 'labels/{split}/{name}.txt', yolo)(root)
    write(root/'train.txt', '\n'.join(f'{root}/images/train/{name}.png' for name in SPLITS['train']))
    write(root/'birds.yaml', f'path: {root}\ntrain: train.txt\nval: {root}/images/val\nnames: {{"0": ant, "1": bee}}')
    write(root/'args.yaml', 'task: detect\nval: true')


IN_FOLDERS = every('images/{split}', 'labels/{split}/{name}.txt', yolo)
IN_SPLITS = roboflow('{split}/images', '{split}/labels/{name}.txt', yolo)
CLASSES = 'classes.txt', 'ant\nbee\n'
ROBOFLOW_YAML = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['ant', 'bee']\n"
DARKNET = 'classes = 2\ntrain = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\nbackup = backup/\n'
ALL = dict(all=EVERYTHING)
STORED = '../../label-studio/data/media/upload/1/' # Where Label Studio keeps images on its server
LAYOUTS = { # What is written, and which splits it has
    'coco roboflow': (both(
        roboflow('{split}'), ('train/_annotations.coco.json', coco(SPLITS['train'], parent=True)),
        ('valid/_annotations.coco.json', coco(SPLITS['val'], parent=True)), ('README.roboflow.txt', 'x')), SPLITS),
    'coco cvat task': (both(every('images'), ('annotations/instances_default.json', coco(EVERYTHING))), ALL),
    'coco cvat project': (both(
        every('images/{split}'), ('annotations/instances_Train.json', coco(SPLITS['train'], folder='train/')),
        ('annotations/instances_Validation.json', coco(SPLITS['val'], folder='val/'))), SPLITS),
    'coco official': (both(
        every('{split}2017'), ('annotations/captions_val2017.json', dict(annotations=[])),
        *for_each_split('annotations/instances_{s}2017.json', lambda split, names: coco(names, 7))), SPLITS),
    'coco in capitals': (both(every('Images'), ('Annotations/ALL.JSON', coco(EVERYTHING))), ALL),
    'coco below its folder': (both(every('images'), ('annotations/all.json', coco(EVERYTHING, folder='images/'))), ALL),
    'coco one file': (both(
        every('images'), ('annotations.json', coco(EVERYTHING, folder='images\\')), ('package.json', {})), ALL),
    'coco fiftyone': (both(every('data'), ('labels.json', coco(EVERYTHING))), ALL),
    'coco fiftyone, splits': (both(
        every('{split}/data'), *for_each_split('{s}/labels.json', lambda split, names: coco(names))), SPLITS),
    'coco label studio': (both(every('images'), ('result.json', coco(EVERYTHING, folder=STORED))), ALL),
    'voc official': (both(
        every('JPEGImages', 'Annotations/{name}.xml', voc), *listing('ImageSets/Main/{split}.txt'),
        ('ImageSets/Main/ant_train.txt', 'a  1\nb -1')), SPLITS),
    'voc cvat': (both(
        every('JPEGImages', 'Annotations/{name}.xml', voc_from_0), ('ImageSets/Main/default.txt', 'a\nb\nc\n'),
        ('labelmap.txt', '# label:color_rgb:parts:actions')), ALL),
    'voc roboflow': (roboflow('{split}', '{split}/{name}.xml', voc), SPLITS),
    'voc without lists': (every('images', 'annotations/{name}.xml', voc), ALL),
    'voc folders of both': (every('{split}/JPEGImages', '{split}/Annotations/{name}.xml', voc), SPLITS),
    'voc folders below both': (every('images/{split}', 'Annotations/{split}/{name}.xml', voc), SPLITS),
    'voc fiftyone': (every('data', 'labels/{name}.xml', voc), ALL),
    'voc fiftyone, folders of both': (every('{split}/data', '{split}/labels/{name}.xml', voc), SPLITS),
    'voc beside images': (every('images', 'images/{name}.xml', voc), ALL),
    'voc beside images of splits': (every('images/{split}', 'images/{split}/{name}.xml', voc), SPLITS),
    'voc in capitals': (every('IMAGES', 'ANNOTATIONS/{name}.XML', voc), ALL),
    'voc in one folder': (every('.', '{name}.xml', voc), ALL),
    'csv roboflow': (both(
        roboflow('{split}'), ('train/_annotations.csv', csv(SPLITS['train'])),
        ('valid/_annotations.csv', csv(SPLITS['val']))), SPLITS),
    'csv roboflow retinanet': (both(
        roboflow('{split}'), ('train/_annotations.csv', csv_bare(SPLITS['train'])),
        ('valid/_annotations.csv', csv_bare(SPLITS['val']))), SPLITS),
    'csv tensorflow tutorial': (both(
        every('images/{split}'), *for_each_split('data/{s}_labels.csv', lambda split, names: csv(names)),
        ('data/label_map.pbtxt', 'item {}'), ('results.csv', 'epoch,loss\n1,2\n')), SPLITS),
    'csv beside folders of images': (both(
        every('images/{split}'), *for_each_split('images/{s}_labels.csv', lambda split, names: csv(names))), SPLITS),
    'csv one folder of images': (both(
        every('images'), *for_each_split('{s}.csv', lambda split, names: csv(names, '4321cf', ';'))), SPLITS),
    'csv one file': (both(every('.'), ('boxes.csv', csv(EVERYTHING, 'c1234f', '\t'))), dict(boxes=EVERYTHING)),
    'csv annotations': (both(every('JPEGImages'), ('Annotations/annotations.CSV', csv(EVERYTHING))), ALL),
    'yolo roboflow': (both(IN_SPLITS, ('data.yaml', ROBOFLOW_YAML + '\nroboflow:\n  version: 3')), SPLITS),
    'yolo outlines': (both(
        roboflow('{split}/images', '{split}/labels/{name}.txt', yolo_outlines),
        ('data.yaml', 'train: train/images\nval: valid/images\nnames: [ant, bee]')), SPLITS),
    'yolo ids from 1': (both(
        every('images/{split}', 'labels/{split}/{name}.txt', yolo_from_1),
        ('my.yaml', 'path: ../nowhere\ntrain: [images/train]\nval: images/val\nnames:\n  1: ant\n  2: bee')), SPLITS),
    'yolo cvat ultralytics': (both(
        IN_FOLDERS, ('data.yaml', 'path: ./\ntrain: train.txt\nval: val.txt\nnames:\n  0: ant\n  1: bee'),
        *listing('{split}.txt', 'images/{split}/{name}.png')), SPLITS),
    'yolo cvat 1.1': (both(
        every('obj_{split}_data', 'obj_{split}_data/{name}.txt', yolo), ('obj.data', DARKNET),
        ('obj.names', 'ant\nbee\n'), *listing('{split}.txt', 'data/obj_{split}_data/{name}.png')), SPLITS),
    'yolo images/train': (both(IN_FOLDERS, CLASSES), SPLITS),
    'yolo train/images': (both(IN_SPLITS, CLASSES), SPLITS),
    'yolo roboflow darknet': (both(
        roboflow('{split}', '{split}/{name}.txt', yolo), ('train/_darknet.labels', 'ant\nbee')), SPLITS),
    'yolo label studio': (both(
        every('images', 'labels/{name}.txt', yolo), CLASSES, ('notes.json', dict(categories=[]))), ALL),
    'yolo cvat 1.1, as documented': (both(
        every('obj_{split}_data', 'obj_{split}_data/{name}.txt', yolo), ('obj.data', DARKNET.replace('data/', '')),
        ('obj.names', 'ant\nbee\n'), *listing('{split}.txt', 'obj_{split}_data/{name}.png')), SPLITS),
    'yolo fiftyone 5': (both(
        IN_FOLDERS, ('dataset.yaml', 'names:\n  0: ant\n  1: bee\npath: /home/me/export\n'
                     'train: ./images/train/\nval: ./images/val/\n')), SPLITS),
    'yolo fiftyone 5, older': (both(
        IN_FOLDERS, ('dataset.yaml', 'names:\n- ant\n- bee\nnc: 2\ntrain: ./images/train/\nval: ./images/val/\n')),
        SPLITS),
    'yolo fiftyone 4': (both(
        every('data', 'data/{name}.txt', yolo), ('obj.names', 'ant\nbee'),
        ('images.txt', 'data/a.png\ndata/b.png\ndata/c.png')), ALL),
    'yolo named after files': (both(every('images', 'labels/{name}.png.txt', yolo), CLASSES), ALL),
    'yolo in capitals': (both(
        every('Images/{split}', 'Labels/{split}/{name}.TXT', yolo), ('Labels/classes.txt', 'ant\nbee\n')), SPLITS),
    'yolo labelimg': (both(IN_FOLDERS, *for_each_split('labels/{s}/classes.txt', lambda *_: 'ant\nbee')), SPLITS),
    'yolo labelimg, folders of both': (both(
        every('{split}/images', '{split}/labels/{name}.txt', yolo), ('train/labels/classes.txt', 'ant\nbee')), SPLITS),
    'yolo absolute': (absolute, SPLITS),
    'yolo in one folder': (both(every('.', '{name}.txt', yolo), CLASSES), ALL),
}


def write_layout(name, root):
    layout, splits = LAYOUTS[name]
    layout(root)
    return splits


def broken_images(kind):
    "Bytes of an image that was cut off, is none, is empty, or has a hole"
    file = io.BytesIO()
    Image.fromarray(pixels('a')).save(file, kind)
    data = file.getvalue()
    third = len(data)//3
    hole = data[:third] + b'\x00'*third + data[2*third:]
    return dict(half=data[:len(data)//2], noise=b'\x00'*999, empty=b'', hole=hole)
