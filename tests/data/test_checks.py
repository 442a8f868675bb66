"Checks of annotations before training."
from pathlib import Path

import pytest
from layouts import CLASSES, NAMES, both, coco, every, write, write_image, write_layout, yolo

from cjm_yolox_pytorch.data.checks import check, check_splits
from cjm_yolox_pytorch.data.prepare import prepare_splits
from cjm_yolox_pytorch.data.splits import find_splits, read_split
from cjm_yolox_pytorch.data.yolo import read_yolo


def test_check_names_the_image_of_a_box_left_out(tmp_path):
    "Even if files have the same name, or one that looks like a message"
    for folder, more in dict(x='0 .5 .5 0 .1\n', y='').items():
        write_image(tmp_path/f'images/{folder}', 'a')
        write(tmp_path/f'labels/{folder}/a.txt', '0 .5 .5 .1 .1\n' + more)
    write_image(tmp_path/'images', 'b')
    (tmp_path/'images/b.png').rename(tmp_path/'images/b: box 1.png')
    write(tmp_path/'labels/b: box 1.txt', '0 .5 .5 .1 0')
    found = read_yolo(tmp_path/'images', ['ant'])
    where = [f.where for f in check(found) if f.kind == 'box left out']
    assert sorted(where) == [str(tmp_path/'images/b: box 1.png'), str(tmp_path/'images/x/a.png')]
    assert [len(found.take([i]).dropped) for i in range(3)] == [int(p in where) for p in found.paths]


def test_check_of_unnamed_classes_is_one_note(tmp_path):
    every('.', '{name}.txt', yolo)(tmp_path)
    a = read_split(tmp_path, 'all')
    assert a.names == ['0', '1'] and [f.kind for f in check(a)] == ['note']


def empty_voc(root):
    write_layout('voc official', root)
    write(root/'ImageSets/Main/train.txt', '')


def empty_yolo(root):
    (root/'train/images').mkdir(parents=True)
    write(root/'data.yaml', 'train: train/images\nnames: [ant, bee]')


def empty_coco(root): write(root/'annotations/instances_train.json', coco([]))


@pytest.mark.parametrize('write_empty', [empty_voc, empty_yolo, empty_coco])
def test_check_of_an_empty_split_stops(write_empty, tmp_path):
    write_empty(tmp_path)
    a = read_split(tmp_path, 'train')
    assert (len(a), a.boxes.shape, a.starts.tolist(), a.names) == (0, (0, 4), [0], NAMES)
    assert [(f.kind, f.stops) for f in check(a)] == [('nothing to learn', True)]


def test_check_splits_finds_an_image_in_two_splits_through_links(tmp_path):
    write_layout('voc official', tmp_path)
    (tmp_path/'JPEGImages/c.png').unlink()
    (tmp_path/'JPEGImages/c.png').symlink_to(tmp_path/'JPEGImages/a.png')
    splits = {name: read() for name, read in find_splits(tmp_path).items()}
    assert [(f.kind, f.text) for f in check_splits(splits)] == [
        ('image in two splits', 'a.png is in train and in val')]


def test_prepare_holds_images_out_of_a_single_split(tmp_path):
    both(every('images', 'labels/{name}.txt', yolo), CLASSES)(tmp_path)
    used = prepare_splits(tmp_path, quiet=True)
    assert {role: name for role, (name, _) in used.items()} == dict(training='all', validation='a tenth of all')
    assert sorted(Path(p).stem for _, a in used.values() for p in a.paths) == ['a', 'b', 'c']
