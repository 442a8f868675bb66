"COCO's JSON: where images lie, which files count, and what is refused."
import json
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
from layouts import EVERYTHING, HEIGHT, SPLITS, STORED, WIDTH, coco, stems, write, write_image, write_layout

from cjm_yolox_pytorch.data.splits import find_splits, read_split

FILE = 'annotations/instances_default.json'
NO_BOX = r'annotations whose bbox is not \[left, top, width, height\] in pixels'


def test_coco_leaves_out_the_parent_class_of_roboflow(tmp_path):
    write_layout('coco roboflow', tmp_path)
    note, = read_split(tmp_path, 'train').notes
    assert note == "class 'insects' is left out: it is the parent of the others, without objects"


def test_coco_does_not_take_images_of_another_dataset(tmp_path):
    write(tmp_path/'ours/all.json', coco(['a']))
    write_image(tmp_path/'images', 'a')
    with pytest.raises(FileNotFoundError, match=r'1 of 1 images are missing, .* Looked for a.png in \S*/ours. '):
        read_split(tmp_path/'ours', 'all')


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
    assert note == '1 other JSON file with annotations, not read, such as captions_val.json'


def test_coco_notes_json_that_it_does_not_read(tmp_path):
    write_layout('coco roboflow', tmp_path)
    write(tmp_path/'val.json', coco(['c']))
    write(tmp_path/'test.json', '{}') # Of another program
    found = find_splits(tmp_path)
    assert 'val' in found and 'test' not in found
    assert found['val']().notes[-1:] == ['1 other JSON file with annotations, not read, such as val.json']


def test_coco_area_that_is_not_known_is_that_of_the_box(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    areas = [a['area'] for a in file['annotations']]
    for a, area in zip(file['annotations'], (None, 0, float('nan'))): a['area'] = area
    write(tmp_path/FILE, file)
    assert read_split(tmp_path, 'all').areas.tolist() == areas


def in_one_folder(root, folder, *names):
    for name in names: write_image(root/folder, name)


def test_coco_strips_blanks_of_class_names(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    file['categories'][0]['name'] = ' ant\t'
    write(tmp_path/FILE, file)
    assert read_split(tmp_path, 'all').names == ['ant', 'bee']


def test_coco_refuses_class_names_that_differ_in_blanks(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    file['categories'][0]['name'] = 'bee '
    write(tmp_path/FILE, file)
    with pytest.raises(ValueError, match=r'same name: bee. Give each'): read_split(tmp_path, 'all')


@pytest.mark.parametrize('blank', ['', ' '])
def test_coco_reads_a_class_with_the_name_of_its_parent(blank, tmp_path):
    "As Roboflow writes it if the project is called like its only class"
    write_layout('coco cvat task', tmp_path)
    file = coco(['a'])
    parent, child = (dict(id=n, name=f'ship{blank}', supercategory=s) for n, s in enumerate(('none', f'ship{blank}')))
    for a in file['annotations']: a['category_id'] = 1
    write(tmp_path/FILE, dict(file, categories=[parent, child]))
    a = read_split(tmp_path, 'all')
    assert (a.names, a.labels.tolist()) == (['ship'], [0, 0]) and 'is the parent of the others' in a.notes[0]


def test_coco_leaves_no_class_out_where_each_is_the_parent_of_the_other(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = dict(coco(EVERYTHING), annotations=[])
    for c, parent in zip(file['categories'], ('bee', 'ant')): c['supercategory'] = parent
    write(tmp_path/FILE, file)
    a = read_split(tmp_path, 'all')
    assert (a.names, a.notes) == (['ant', 'bee'], [])


# Outlines and sizes

def test_coco_takes_the_bounds_of_polygons_without_boxes(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    boxes = read_split(tmp_path, 'all').boxes
    for a in file['annotations']:
        x, y, w, h = a.pop('bbox')
        left, right = [x, y, x + w, y, x, y + h], [x + w, y + 1, x + 1, y + h, x + 2, y + 3]
        a['segmentation'] = [left, right]
    file['annotations'][1].update(bbox=[0, 0, 16, 12])
    file['annotations'][2].update(bbox=[])
    write(tmp_path/FILE, file)
    a = read_split(tmp_path, 'all')
    assert a.boxes.tolist() == boxes.tolist()
    assert a.notes == ['2 boxes taken from polygons, since annotations have no bbox']


NO_POLYGONS = dict(mask=dict(counts=[9, 9], size=[60, 80]), packed=dict(counts='PPYo0', size=[60, 80]),
    point=[[1, 2]], line=[[1, 2, 3, 4]], odd=[[1, 2, 3, 4, 5, 6, 7]], NaN=[[1, 2, 3, 4, 5, float('nan')]],
    words=[['1', 2, 3, 4, 5, 6]], second=[[1, 2, 3, 4, 5, 6], [1, 2]], flat=[1, 2, 3, 4, 5, 6], none=None)


@pytest.mark.parametrize('name', NO_POLYGONS)
def test_coco_refuses_other_outlines_without_boxes(name, tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    del file['annotations'][0]['bbox']
    file['annotations'][0]['segmentation'] = NO_POLYGONS[name]
    write(tmp_path/FILE, file)
    with pytest.raises(ValueError, match=NO_BOX + '.*segmentation.*. Polygons can stand for a bbox, but neither RLE'):
        read_split(tmp_path, 'all')


@pytest.mark.parametrize('size', [{}, dict(width=None, height=None), dict(width=0, height=0), dict(width=WIDTH)])
def test_coco_reads_sizes_that_it_lacks_from_the_images(size, tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    for image in file['images'][1:]:
        del image['width'], image['height']
        image.update(size)
    write(tmp_path/FILE, file)
    a = read_split(tmp_path, 'all')
    assert a.sizes.tolist() == [[HEIGHT, WIDTH]]*3
    assert a.notes == ['2 images without width and height in the JSON file: read from the image files']


# Where images are

@pytest.mark.parametrize('stored', [
    STORED, '/home/me/photos/', 'C:\\photos\\', '..\\..\\upload\\', 'http://localhost:8080/data/upload/', 'elsewhere/'])
def test_coco_finds_images_by_the_name_of_their_file_alone(stored, tmp_path):
    in_one_folder(tmp_path, 'images', *EVERYTHING)
    write(tmp_path/'result.json', coco(EVERYTHING, folder=stored))
    a = read_split(tmp_path, 'all')
    assert [Path(p) for p in a.paths] == [tmp_path/f'images/{name}.png' for name in EVERYTHING]
    note, = a.notes
    alone = '3 images found by file name alone'
    assert note == f'{alone}, such as {tmp_path/"images/a.png"} for {stored}a.png'


def test_coco_refuses_plain_names_of_several_images(tmp_path):
    in_one_folder(tmp_path, 'images', 'a', 'b')
    file = coco('ab', folder='../1/')
    file['images'][1]['file_name'] = '../2/a.png'
    write(tmp_path/'result.json', file)
    with pytest.raises(ValueError, match='../1/a.png leaves .*ambiguous: several images are called a.png'):
        read_split(tmp_path, 'all')


def test_coco_refuses_plain_names_in_several_folders(tmp_path):
    for folder in ('images', 'data'): in_one_folder(tmp_path, folder, *EVERYTHING)
    write(tmp_path/'result.json', coco(EVERYTHING, folder=STORED))
    with pytest.raises(ValueError, match=r'ambiguous: \S*images/a.png and \S*data/a.png'): read_split(tmp_path, 'all')


def test_coco_reads_no_image_outside_its_folder(tmp_path):
    in_one_folder(tmp_path, 'upload', *EVERYTHING)
    in_one_folder(tmp_path, 'ours/images', 'a', 'b', 'd')
    write(tmp_path/'ours/result.json', coco(EVERYTHING, folder='../upload/'))
    message = r'../upload/a.png leaves the folder .* Looked for c.png in \S*/ours, \S*/ours/images. ' \
        r'Image files that are not listed: 1, such as \S*/d.png. Give the folder that has it with --images'
    with pytest.raises(ValueError, match=message): read_split(tmp_path/'ours', 'all')


def test_coco_shows_names_that_are_missing_beside_names_that_are_not_listed(tmp_path):
    write_layout('coco cvat task', tmp_path)
    for name in 'ab': (tmp_path/f'images/{name}.png').rename(tmp_path/f'images/photo-{name}.png')
    message = 'default.json: 2 of 3 images are missing, such as .*/a.png, .*/b.png. .*' \
        'not listed: 2, such as .*/photo-a.png.'
    with pytest.raises(FileNotFoundError, match=message): read_split(tmp_path, 'all')


def test_coco_takes_the_folder_with_most_of_its_images(tmp_path):
    in_one_folder(tmp_path, 'images', *EVERYTHING)
    in_one_folder(tmp_path, 'annotations', 'a') # A sample, beside the file
    write(tmp_path/FILE, coco(EVERYTHING))
    assert {Path(p).parent.name for p in read_split(tmp_path, 'all').paths} == {'images'}


def test_coco_notes_other_images_of_the_same_names(tmp_path):
    write_layout('coco cvat task', tmp_path)
    in_one_folder(tmp_path, 'data', *EVERYTHING)
    (tmp_path/'all').symlink_to('images')
    a = read_split(tmp_path, 'all')
    assert {Path(p).parent.name for p in a.paths} == {'all'}
    assert a.notes == [f'images are read from {tmp_path/"all"}; those in {tmp_path/"data"} have the same names']


@pytest.mark.parametrize('folder', ['val2017', 'images/val', 'images/Validation', 'data/val2017'])
def test_coco_finds_folders_of_the_same_split(folder, tmp_path):
    write(tmp_path/'annotations/instances_val2017.json', coco(EVERYTHING))
    in_one_folder(tmp_path, 'images/train2017', *EVERYTHING)
    in_one_folder(tmp_path, folder, *EVERYTHING)
    assert {Path(p).parent for p in read_split(tmp_path, 'val').paths} == {tmp_path/folder}


def in_another_form(name):
    return unicodedata.normalize('NFD' if unicodedata.is_normalized('NFC', name) else 'NFC', name)


@pytest.mark.parametrize('name', ['f\u00fc\u00dfe', 'fu\u0308\u00dfe'], ids=['NFC', 'NFD'])
def test_coco_finds_names_in_another_unicode_form(name, tmp_path):
    in_one_folder(tmp_path, 'images', 'a')
    (tmp_path/'images/a.png').rename(tmp_path/f'images/{name}.png')
    for stored in ('', 'images/', STORED):
        file = coco('a')
        file['images'][0]['file_name'] = f'{stored}{in_another_form(name)}.png'
        write(tmp_path/'annotations/all.json', file)
        path, = read_split(tmp_path, 'all').paths
        assert Path(path).is_file() and Path(path).parent == tmp_path/'images'


def test_coco_reads_images_of_a_folder_that_is_named(tmp_path):
    in_one_folder(tmp_path, 'photos', *EVERYTHING)
    for split, names in SPLITS.items(): write(tmp_path/f'ours/annotations/instances_{split}2017.json', coco(names))
    for split, names in SPLITS.items():
        a = read_split(tmp_path/'ours', split, images=str(tmp_path/'photos'))
        assert [Path(p) for p in a.paths] == [tmp_path/f'photos/{name}.png' for name in names] and not a.notes


def test_coco_reads_images_of_a_named_folder_with_one_for_each_split(tmp_path):
    for split, names in SPLITS.items():
        write(tmp_path/f'ours/{split}/_annotations.coco.json', coco(names))
        in_one_folder(tmp_path, f'photos/{dict(val="valid").get(split, split)}', *names)
    for split, names in SPLITS.items():
        assert stems(read_split(tmp_path/'ours', split, images=tmp_path/'photos')) == names
    val = tmp_path/'ours/val.json'
    write(val, coco(SPLITS['val']))
    assert stems(read_split(val, 'all', images=tmp_path/'photos')) == SPLITS['val'] # By the name of the file


def test_coco_looks_nowhere_else_than_in_a_named_folder(tmp_path):
    write_layout('coco cvat task', tmp_path/'ours')
    with pytest.raises(FileNotFoundError, match='photos'):
        read_split(tmp_path/'ours', 'all', images=tmp_path/'photos')
    in_one_folder(tmp_path, 'photos', 'a', 'b')
    with pytest.raises(FileNotFoundError, match=r'1 of 3 images are missing, .* Looked for c.png in \S*/photos. Give'):
        read_split(tmp_path/'ours', 'all', images=tmp_path/'photos')


# Which files are COCO

LABELME = dict(version='5.4.1', flags={}, shapes=[dict(label='annotations', points=[[1, 2]])], imagePath='a.png')
VIA = {'_via_settings': {}, '_via_img_metadata': {'a.png123': dict(filename='a.png', size=123, regions=[])}}
OTHERS = {'labelme': LABELME, 'via': VIA, 'classes': {'0': 'ant'}, 'list': ['images', 'annotations'],
    'label studio': [dict(id=1, annotations=[dict(result=[])], data=dict(image='/data/upload/1/a.png'))],
    'results': [dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], score=.5)]}


@pytest.mark.parametrize('name', OTHERS)
def test_coco_ignores_json_of_other_programs(name, tmp_path):
    write_layout('coco cvat task', tmp_path)
    for file in ('a.json', 'train.json', 'annotations/labels.json', 'images/labels.json', 'result.json'):
        write(tmp_path/file, OTHERS[name])
    write(tmp_path/'runs/result.json', dict(images=['a.png']))
    assert [*find_splits(tmp_path)] == ['all'] and not read_split(tmp_path, 'all').notes


@pytest.mark.parametrize('name', [name for name in OTHERS if name != 'label studio'])
def test_other_json_is_no_dataset(name, tmp_path):
    in_one_folder(tmp_path, '.', *EVERYTHING)
    write(tmp_path/'export.json', OTHERS[name])
    with pytest.raises(ValueError): find_splits(tmp_path)


# Refusals

BAD = { # What is changed of the first image, annotation or category, and the message
    'strings': ('annotations', dict(bbox=['1', '2', '3', '4']), NO_BOX),
    'three numbers': ('annotations', dict(bbox=[1, 2, 3]), NO_BOX),
    'five numbers': ('annotations', dict(bbox=[1, 2, 3, 4, 45]), NO_BOX + '.* a rotated box'),
    'booleans': ('annotations', dict(bbox=[True, True, True, True]), NO_BOX),
    'nothing': ('annotations', dict(bbox=None), NO_BOX + ': .*Correct'),
    'NaN': ('annotations', dict(bbox=[1, float('nan'), 3, 4]), NO_BOX),
    'infinite': ('annotations', dict(bbox=[1, 2, float('inf'), 4]), NO_BOX),
    '1e300': ('annotations', dict(bbox=[1, 2, 1e300, 4]), NO_BOX + ': .*1e.300'),
    'too large': ('annotations', dict(bbox=[1, 2, 1e99, 4]), r'not finite: a.png: box \[1, 2, inf, 6\]. Fix'),
    'negative size': ('annotations', dict(bbox=[9, 9, -3, 4]), r'boxes of negative size: a.png: box \[9, 9, 6, 13\]'),
    'unknown class': (
        'annotations', dict(category_id=9), r"not an id in categories \(1, 2\): {'id': 0, .*'category_id': 9"),
    'unknown image': (
        'annotations', dict(image_id='0'), r"not an id in images \(0, 1, 2\): {'id': 0, 'image_id': '0'.*Correct"),
    'size in words': ('images', dict(width='20'), 'images whose width is not a whole number of pixels: .*20'),
    'part of a pixel': ('images', dict(width=80.5), 'images whose width is not a whole number of pixels'),
    'negative height': ('images', dict(height=-1), 'images whose height is not a whole number of pixels'),
    'parent folder': ('images', dict(file_name='../../etc/passwd'), '../../etc/passwd leaves the folder of the data'),
    'absolute': ('images', dict(file_name='/etc/passwd'), '/etc/passwd is absolute'),
    'drive': ('images', dict(file_name='C:\\photos\\z.png'), 'is absolute'),
    'missing': ('images', dict(file_name='z.png'), 'default.json: 1 of 3 images are missing, such as .*z.png'),
    'same id': ('images', dict(id=1), 'several images have the same id: 1. Give each'),
    'same file': (
        'images', dict(file_name='b.png'), r'listed more than once: \S*/b.png. List each once'),
    'same file, written otherwise': ('images', dict(file_name='./b.png'), 'listed more than once: .*b.png. List each'),
    'same class': (
        'categories', dict(name='bee'), 'several classes have the same name: bee. Give each'),
    'class without a name': ('categories', dict(name=None), 'categories whose name is not text: .*Correct'),
    'same class number': ('categories', dict(id=2), 'several categories have the same id: 2. Give each'),
    'class number as text': (
        'categories', dict(id='1'), r"not an id in categories \('1', 2\): {'id': 1, .*'category_id': 1"),
    'class number in a list': ('annotations', dict(category_id=[1]), 'whose category_id is not a number or text'),
    'image number in a list': ('images', dict(id=[1]), 'images whose id is not a number or text: .*a.png'),
    'no file name': ('images', dict(file_name=None), 'images whose file_name is not text'),
    'blank class': ('categories', dict(name=' '), 'categories whose name is not text'),
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
    with pytest.raises(ValueError, match=NO_BOX): read_split(tmp_path, 'all')


def test_coco_refuses_fractions(tmp_path):
    write_layout('coco cvat task', tmp_path)
    file = coco(EVERYTHING)
    for a in file['annotations']: a['bbox'] = [.1, .2, .5, .6]
    write(tmp_path/FILE, file)
    with pytest.raises(ValueError, match='no box ends beyond the first pixel, as if these were fractions'):
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


def test_coco_names_a_file_that_is_cut_off(tmp_path):
    text = json.dumps(coco(EVERYTHING))
    write(tmp_path/'train.json', text[:text.index('categories')])
    with pytest.raises(ValueError, match='train.json: not JSON: .*Export it again'): read_split(tmp_path, 'train')


REPEATED = { # Text, and the message
    'lists': ('{"images": [], "images": [], "annotations": []}', r"several values for \['images'\] in .*"),
    'boxes': ('{"annotations": [{"id": 3, "bbox": [1, 2, 3, 4], "bbox": [1, 2, 3, 4]}]}',
              r"several values for \['bbox'\] in {'id': 3, .*"),
    'outlines': ('{"annotations": [{"bbox": [1, 2, 3, 4], "segmentation": [], "segmentation": []}]}',
                 "'segmentation'. in .*"),
    'names': ('{"categories": [{"id": 1, "name": "ant", "name": "bee", "id": 2}]}', r"for \['id', 'name'\] in .*")}


@pytest.mark.parametrize('name', REPEATED)
def test_coco_refuses_repeated_keys(name, tmp_path):
    text, message = REPEATED[name]
    write(tmp_path/FILE, text)
    with pytest.raises(ValueError, match=f'instances_default.json: .*{message}. Keep one of them'):
        read_split(tmp_path, 'all')


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
    first = '; '.join(f'.*{n}.*' for n in (100, 101, 102))
    message = fr'not an id in categories \(1, 2\): 12, such as {first}. Correct'
    with pytest.raises(ValueError, match=message): read_split(tmp_path, 'all')


@pytest.mark.parametrize('layout', ['folders', 'shared'])
def test_coco_notes_images_that_no_file_lists(tmp_path, layout):
    "In a folder that splits share, images of the other splits are listed, whatever their file looks like"
    for split, names in SPLITS.items():
        file = json.dumps(coco(names, folder='C:\\photos\\' if split == 'val' else ''))
        write(tmp_path/f'annotations/{split}.json', file.replace('b.png', r'\u0062.png'))
        for name in names: write_image(tmp_path/'images'/('' if layout == 'shared' else split), name)
    folder = tmp_path/'images'/('' if layout == 'shared' else 'train')
    assert read_split(tmp_path, 'train').notes == []
    for name in ('more.png', 'most.png', '.hidden.png', 'notes.txt'): (folder/name).touch()
    note, = read_split(tmp_path, 'train').notes
    assert note == f'2 images that no JSON file lists, left out, such as {folder}/more.png'
    assert not any('no JSON' in note for note in read_split(tmp_path/'annotations/train.json', 'all').notes)
