"COCO's JSON: where images lie, which files count, and what is refused."
import json
import tracemalloc
from pathlib import Path

import pytest
from layouts import EVERYTHING, SPLITS, coco, stems, write, write_image, write_layout

from cjm_yolox_pytorch.data.splits import find_splits, read_split

FILE = 'annotations/instances_default.json'


def test_coco_leaves_out_the_parent_class_of_roboflow(tmp_path):
    write_layout('coco roboflow', tmp_path)
    note, = read_split(tmp_path, 'train').notes
    assert note == "class 'insects' is left out: it is the parent of the others, without objects"


def test_coco_does_not_take_images_of_another_dataset(tmp_path):
    write(tmp_path/'ours/all.json', coco(['a']))
    write_image(tmp_path/'images', 'a')
    with pytest.raises(FileNotFoundError, match='its image a.png is in none of'): read_split(tmp_path/'ours', 'all')


def test_coco_takes_images_of_the_folder_named_after_the_split_first(tmp_path):
    for split in SPLITS:
        write(tmp_path/f'annotations/{split}.json', coco(['a']))
        for folder in (split, 'images'): write_image(tmp_path/folder, 'a')
    assert [Path(read_split(tmp_path, split).paths[0]).parent.name for split in SPLITS] == ['train', 'val']


def test_coco_reads_other_json_for_splits_that_exports_lack(tmp_path):
    for name in 'ac': write_image(tmp_path/'images', name)
    write(tmp_path/'annotations/instances_train.json', coco(['a']))
    for name in ('val', 'captions_val'): write(tmp_path/f'annotations/{name}.json', coco(['c']))
    assert {s: stems(read()) for s, read in find_splits(tmp_path).items()} == dict(train=['a'], val=['c'])
    note, = read_split(tmp_path, 'train').notes
    assert note == '1 other JSON files with annotations are not read, such as captions_val.json'


def test_coco_notes_json_that_it_does_not_read(tmp_path):
    write_layout('coco roboflow', tmp_path)
    write(tmp_path/'val.json', coco(['c']))
    write(tmp_path/'test.json', '{}') # Of another program
    found = find_splits(tmp_path)
    assert 'val' in found and 'test' not in found
    assert found['val']().notes[-1:] == ['2 other JSON files with annotations are not read, such as test.json']


def test_coco_area_that_is_not_known_is_that_of_the_box(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    areas = [a['area'] for a in file['annotations']]
    for a, area in zip(file['annotations'], (None, 0, float('nan'))): a['area'] = area
    write(tmp_path/FILE, file)
    assert read_split(tmp_path, 'all').areas.tolist() == areas


# Refusals

BAD = { # What is changed of the first image, annotation or category, and the message
    'strings': ('annotations', dict(bbox=['1', '2', '3', '4']), 'annotations whose bbox is not 4 plain numbers'),
    'three numbers': ('annotations', dict(bbox=[1, 2, 3]), 'annotations whose bbox is not 4 plain numbers'),
    'nothing': ('annotations', dict(bbox=None), 'bbox is not 4 plain numbers .an outline is not enough.: .*Correct'),
    'NaN': ('annotations', dict(bbox=[1, float('nan'), 3, 4]), 'annotations whose bbox is not 4 plain numbers'),
    'infinite': ('annotations', dict(bbox=[1, 2, float('inf'), 4]), 'annotations whose bbox is not 4 plain numbers'),
    'too large': ('annotations', dict(bbox=[1, 2, 1e99, 4]), r'not finite: a.png: box \[1, 2, inf, 6\]. Fix'),
    'negative size': ('annotations', dict(bbox=[9, 9, -3, 4]), r'boxes of negative size: a.png: box \[9, 9, 6, 13\]'),
    'unknown class': ('annotations', dict(category_id=9), "not an id in categories: {'id': 0, .*'category_id': 9"),
    'unknown image': ('annotations', dict(image_id='0'), "not an id in images: {'id': 0, 'image_id': '0'.*Correct"),
    'size in words': ('images', dict(width='wide'), 'images whose width is not a number of pixels'),
    'no size': ('images', dict(width=0), 'images whose width is not a number of pixels'),
    'no height': ('images', dict(height=None), 'images whose height is not a number of pixels'),
    'parent folder': ('images', dict(file_name='../../etc/passwd'), '../../etc/passwd leaves the folder of the data'),
    'absolute': ('images', dict(file_name='/etc/passwd'), '/etc/passwd is absolute'),
    'drive': ('images', dict(file_name='C:\\photos\\a.png'), 'is absolute'),
    'missing': ('images', dict(file_name='z.png'), 'default.json: 1 of 3 images are missing, such as .*z.png'),
    'same id': ('images', dict(id=1), 'several images have the same id: 1. Give each'),
    'same file': ('images', dict(file_name='b.png'), 'listed more than once: .*b.png. List each once'),
    'same class': ('categories', dict(name='bee'), 'several classes have the same name: bee'),
    'class without a name': ('categories', dict(name=None), 'categories whose name is not text: .*Correct'),
    'same class number': ('categories', dict(id=2), 'several categories have the same id: 2. Give each'),
    'class number as text': ('categories', dict(id='1'), "not an id in categories: {'id': 1, .*'category_id': 1"),
    'class number in a list': ('annotations', dict(category_id=[1]), 'whose category_id is not a number or text'),
    'image number in a list': ('images', dict(id=[1]), 'images whose id is not a number or text: .*a.png'),
    'no file name': ('images', dict(file_name=None), 'images whose file_name is not text'),
    'crowd as text': ('annotations', dict(iscrowd='0'), 'annotations whose iscrowd is not 0 or 1'),
    'area as text': ('annotations', dict(area='12'), 'annotations whose area is not a number'),
}


@pytest.mark.parametrize('name', BAD)
def test_coco_refuses(name, tmp_path):
    key, change, message = BAD[name]
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    file[key][0].update(change)
    write(tmp_path/FILE, file)
    with pytest.raises((ValueError, FileNotFoundError), match=message): read_split(tmp_path, 'all')


def test_coco_refuses_outlines_without_boxes(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    for a in file['annotations']: del a['bbox']
    write(tmp_path/FILE, file)
    with pytest.raises(ValueError, match='an outline is not enough'): read_split(tmp_path, 'all')


def test_coco_refuses_fractions(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    for a in file['annotations']: a['bbox'] = [.1, .2, .5, .6]
    write(tmp_path/FILE, file)
    with pytest.raises(ValueError, match='no box ends beyond the first pixel. COCO and VOC need pixels'):
        read_split(tmp_path, 'all')


def test_coco_looks_for_annotations_without_reading_a_file_into_memory(tmp_path):
    write_layout('coco one file', tmp_path)
    write(tmp_path/'empty.json', '')
    write(tmp_path/'other.json', ' '*2**24)
    tracemalloc.start()
    assert [*find_splits(tmp_path)] == ['all'] and tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


UNREADABLE = {
    'cut off': ('{"images": [', 'instances_default.json: not JSON: .*line 1 column 13.*Export it again'),
    'empty': ('', 'not JSON'), 'NUL': ('\x00', 'not JSON'), 'deep': ('['*100000, 'not JSON'),
    'a list': ('[]', "no list 'images'"), 'a number in place of a list': ('{"images": 3}', "no list 'images'"),
    'numbers': ('{"images": [3], "annotations": [], "categories": []}', 'images that are not objects: 3. Remove'),
    'annotations': ('{"images": [], "annotations": [3], "categories": []}', 'annotations that are not objects: 3')}


@pytest.mark.parametrize('name', UNREADABLE)
def test_coco_refuses_other_json(name, tmp_path):
    text, message = UNREADABLE[name]
    write(tmp_path/FILE, text)
    with pytest.raises(ValueError, match=message): read_split(tmp_path, 'all')


def test_coco_names_some_of_many_faults(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    file['annotations'] = [dict(file['annotations'][0], id=n, category_id=100 + n) for n in range(12)]
    write(tmp_path/FILE, json.dumps(file))
    message = f'not an id in categories: 12, such as {"; ".join(f".*{n}.*" for n in (100, 101, 102))}. Correct'
    with pytest.raises(ValueError, match=message): read_split(tmp_path, 'all')
