"Datasets as people have them: every layout of every format, and which folder is which split."
from pathlib import Path

import numpy as np
import pytest
from layouts import CLASSES, EVERYTHING, LAYOUTS, NAMES, OBJECTS, both, every, csv, labeled, labeled_voc, pixels
from layouts import stems, voc, write, write_files, write_image, write_layout, yolo

from cjm_yolox_pytorch.data.annotations import read_annotated
from cjm_yolox_pytorch.data.splits import choose_splits, find_splits, read_split
from cjm_yolox_pytorch.files.paths import files_below


@pytest.mark.parametrize('name', LAYOUTS)
def test_layout_is_read_as_it_comes(name, tmp_path):
    "The same images, boxes and names from each, detected or by naming the format"
    splits = write_layout(name, tmp_path)
    found = find_splits(tmp_path)
    assert set(found) == set(splits) == set(find_splits(tmp_path, name.split()[0]))
    for split, images in splits.items():
        a = found[split]()
        assert a.names == NAMES and stems(a) == images
        for i, image in enumerate(images):
            boxes, labels, crowd = a.objects(i)
            assert [(NAMES[label], *b) for label, b in zip(labels, boxes.round(3).tolist())] == OBJECTS[image]
            assert not crowd.any() and np.array_equal(read_annotated(a, i).permute(1, 2, 0), pixels(image))
    synonyms = dict(val='valid', all='default')
    for split in splits: assert read_split(tmp_path, synonyms.get(split, split)).names == NAMES


def test_byte_order_marks_are_ignored(tmp_path):
    names = dict(coco='coco cvat task', voc='voc official', yolo='yolo roboflow', darknet='yolo cvat 1.1')
    for folder, name in names.items(): write_layout(name, tmp_path/folder)
    def contents():
        splits = [read() for folder in names for read in find_splits(tmp_path/folder).values()]
        return [(a.names, a.boxes.tolist()) for a in splits]
    before = contents()
    for suffix in ('json', 'txt', 'yaml', 'xml', 'names', 'data'):
        for path in tmp_path.rglob(f'*.{suffix}'): path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert contents() == before


@pytest.mark.parametrize('layout, file', [
    ('yolo images/train', 'classes.txt'), ('yolo images/train', 'labels/train/a.txt'), ('yolo roboflow', 'data.yaml'),
    ('coco cvat task', 'annotations/instances_default.json'), ('voc official', 'ImageSets/Main/train.txt')])
def test_text_in_another_encoding_is_named(layout, file, tmp_path):
    splits = write_layout(layout, tmp_path)
    write(tmp_path/file, '# Vögel, "annotations"', 'latin-1')
    with pytest.raises(ValueError, match=f'{file}: byte 3 is not UTF-8. Save the file as UTF-8'):
        read_split(tmp_path, next(iter(splits)), layout.split()[0])


def test_unrelated_files_are_ignored(tmp_path):
    "Notes in another encoding, what editors and macOS hide, and a link that leads back"
    write_layout('coco cvat task', tmp_path/'coco')
    write(tmp_path/'coco/notes.yaml', 'author: Jörg', 'latin-1')
    write(tmp_path/'coco/annotations/._instances_default.json', b'\x00\x05\x16\x07"annotations"')
    write_layout('voc in one folder', tmp_path/'voc')
    write(tmp_path/'voc/.idea/workspace.xml', '<project/>')
    write_layout('yolo in one folder', tmp_path/'yolo')
    write_image(tmp_path/'yolo/.ipynb_checkpoints', 'a')
    (tmp_path/'yolo/back').symlink_to('..')
    (tmp_path/'yolo/again').symlink_to(tmp_path/'yolo')
    for name in ('coco', 'voc'): assert stems(read_split(tmp_path/name, 'all')) == EVERYTHING
    assert [p.name for p in files_below(tmp_path/'yolo', '.txt')].count('a.txt') == 1
    assert not [p for p in files_below(tmp_path, '.png') if '.ipynb_checkpoints' in p.parts]


def test_csv_file_beside_another_format_is_not_read_unless_asked(tmp_path):
    "Tutorials make it from the XML files that are still there"
    write_layout('voc without lists', tmp_path)
    write(tmp_path/'train_labels.csv', csv('c'))
    assert list(find_splits(tmp_path)) == ['all'] and list(find_splits(tmp_path, 'csv')) == ['train']


# Which folder is which split

APART = {**labeled('images/train/a', 'images/val/c'), 'classes.txt': 'ant'}
WHOLE = {'JPEGImages/a': None, 'Annotations/a.xml': voc('a')}
PLACES = { # What is written, and the splits found there or the message
    'training and validation': ({**labeled('training/a', 'validation/c'), 'classes.txt': 'ant'}, ['train', 'val']),
    'training and validation, of images': (labeled('images/training/a', 'images/validation/c'), ['train', 'val']),
    'training and testing in VOC': (labeled_voc('training/a', 'testing/c'), ['test', 'train']),
    'a test that has no labels': ({**APART, 'test/b': None}, ['train', 'val']),
    'a test with labels': ({**APART, **labeled('test/b')},
                           'not belong together: .*/test/b.png; .*/images/train/a.png. Remove'),
    'a val of predictions': ({**APART, **labeled('val/b')}, '/val/b.png; .*/images/train/a.png'),
    'an empty train': ({**labeled('images/a'), 'train/x.md': ''}, ['all']),
    'images around train': (labeled('train/a', 'b'), '/train/a.png; .*/b.png'),
    'images around images': (labeled('images/a', 'b'), '/images/a.png; .*/b.png'),
    'other images around images': ({**labeled('images/a'), 'b': None}, ['all']),
    'VOC with a test that has no XML': ({**WHOLE, 'test/b': None}, ['all']),
    'VOC with a test': ({**WHOLE, **labeled_voc('test/b')}, '/test/b.xml; .*/Annotations/a.xml'),
    'VOC around train': (labeled_voc('train/a', 'b'), '/train/a.xml; .*/b.xml'),
    'VOC, train beside images/train': ({'train/a.xml': voc('a'), 'images/train/a': None}, ['train']),
}


@pytest.mark.parametrize('name', PLACES)
def test_split_folders(name, tmp_path):
    files, found = PLACES[name]
    write_files(tmp_path, files)
    if isinstance(found, str):
        with pytest.raises(ValueError, match=found): find_splits(tmp_path)
        return
    splits = find_splits(tmp_path)
    assert sorted(splits) == found and all(len(read()) == 1 for read in splits.values())


REFUSED = {
    'images alone': (lambda root: write_image(root, 'a'),
                     r'does not look like any format. Looked for coco \(\*.json.*yolo'),
    'two formats and a CSV file': (both(every('.', '{name}.xml', voc), every('.', '{name}.txt', yolo), CLASSES,
                                         ('train.csv', csv('abc'))), 'looks like voc and like yolo. Choose one'),
    'two formats': (both(every('.', '{name}.xml', voc), every('.', '{name}.txt', yolo), CLASSES),
                    r'looks like voc and like yolo. Choose one with format \(--format\)'),
    'val and valid': (both(LAYOUTS['voc roboflow'][0], every('{split}', '{split}/{name}.xml', voc)),
                      'several parts for one split: val. Leave only one'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_find_splits_refuses(name, tmp_path):
    write_data, message = REFUSED[name]
    write_data(tmp_path)
    with pytest.raises(ValueError, match=message): find_splits(tmp_path)


@pytest.mark.parametrize('part', ['images', 'images/train', 'labels/val', '../data/images'])
def test_part_of_a_dataset_is_refused(part, tmp_path, monkeypatch):
    root = tmp_path/'data'
    write_layout('yolo images/train', root)
    monkeypatch.chdir(root)
    message = 'does not look like any format. Looked for coco .*Give the folder of the whole dataset'
    for path in (part, root/part):
        with pytest.raises(ValueError, match=message): find_splits(path)


def test_json_of_other_programs_is_no_dataset(tmp_path):
    write_image(tmp_path, 'a')
    write(tmp_path/'package.json', '{}')
    with pytest.raises(ValueError, match='does not look like any format'): find_splits(tmp_path)


@pytest.mark.parametrize('split', ['val', 'test', 'validation'])
def test_split_kept_for_the_end_is_trained_on_only_when_asked(split, tmp_path):
    write_files(tmp_path, labeled(f'{split}/a', f'{split}/b'))
    splits = find_splits(tmp_path)
    message = r'but no train. Choose with train and val \(--train, --val\)'
    with pytest.raises(ValueError, match=message): choose_splits(tmp_path, splits)
    assert choose_splits(tmp_path, splits, train=split)[0] == next(iter(splits))


def test_splits_of_paths_with_a_relative_root(tmp_path, monkeypatch):
    write_layout('yolo in one folder', tmp_path)
    monkeypatch.chdir(tmp_path)
    assert stems(read_split('.', 'all')) == EVERYTHING
    assert [Path(p).name for p in read_split(Path(), 'all').paths] == [f'{name}.png' for name in EVERYTHING]
