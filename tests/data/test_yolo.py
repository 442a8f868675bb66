"YOLO's text files: boxes and outlines, files that belong together, and what is refused."
import os
import re

import numpy as np
import pytest
from layouts import LINE, SPLITS, every, labelled, write, write_files, write_image, write_layout, yolo

from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.data.yolo import read_yolo


def read_text(root, text, names=('ant',)):
    "Annotations of one image with this label file"
    write_image(root, 'a')
    write(root/'a.txt', text)
    return read_yolo(root, list(names))


def test_yolo_images_without_a_file_have_no_objects(tmp_path):
    every('images', 'labels/{name}.txt', yolo)(tmp_path)
    (tmp_path/'labels/c.txt').unlink()
    assert np.diff(read_split(tmp_path, 'all').starts).tolist() == [2, 0, 0]
    for path in (tmp_path/'labels').iterdir(): path.unlink()
    with pytest.raises(FileNotFoundError, match='no image has a label file. For .*/images/a.png, put a.txt beside'):
        read_yolo(tmp_path/'images')


def test_yolo_notes_what_is_alone(tmp_path):
    write_layout('yolo absolute', tmp_path)
    assert read_split(tmp_path, 'train').notes == read_split(tmp_path, 'val').notes == []
    write(tmp_path/'labels/val/z.txt', yolo('a'))
    (tmp_path/'labels/train/b.txt').unlink()
    note, = read_split(tmp_path, 'train').notes
    assert re.fullmatch('1 images have no label file, which means no objects, such as .*images/train/b.png', note)
    note, = read_split(tmp_path, 'val').notes
    assert re.fullmatch('1 label files without an image .* are left out, such as .*labels/val/z.txt', note)


def test_yolo_notes_labels_whose_image_has_an_unsupported_extension(tmp_path):
    write_files(tmp_path, {'images/a': None, 'labels/a.txt': LINE, 'images/b.heic': b'', 'labels/b.txt': LINE})
    note, = read_yolo(tmp_path/'images', ['ant']).notes
    assert note == f'1 label files without an image that can be read are left out, such as {tmp_path}/labels/b.txt'


def test_yolo_labels_without_permission_are_not_missing(tmp_path, monkeypatch):
    "As root reads everything, the system is replaced"
    write_files(tmp_path, {'images/a': None, 'labels/a.txt': LINE})
    real = os.stat

    def stat(path, *args, **kwargs):
        if str(path).endswith('a.txt'): raise PermissionError(13, 'Permission denied', str(path))
        return real(path, *args, **kwargs)
    monkeypatch.setattr(os, 'stat', stat)
    with pytest.raises(PermissionError, match='a.txt'): read_yolo(tmp_path/'images', ['ant'])


def test_yolo_labels_of_another_dataset_are_not_taken(tmp_path):
    root = tmp_path/'images/ds'
    write_files(root, {**labelled('a'), 'classes.txt': 'ant'})
    write(tmp_path/'labels/ds/a.txt', '0 .1 .1 .1 .1')
    beside, elsewhere = [[32, 24, 48, 36]], [[4, 3, 12, 9]]
    assert read_split(root, 'all').boxes.tolist() == beside
    write(root/'data.yaml', 'train: .\nnames: [ant]')
    assert read_split(root, 'train').boxes.tolist() == beside
    write(tmp_path/'data.yaml', 'path: images\ntrain: ds\nnames: [ant]') # Here the folder of labels is part of the data
    assert read_split(tmp_path/'data.yaml', 'train').boxes.round().tolist() == elsewhere


def test_yolo_images_do_not_share_a_label_file(tmp_path):
    write_files(tmp_path, {**labelled('a'), 'a.jpg': b''})
    with pytest.raises(ValueError, match='images that share a label file: .*a.jpg, .*a.png. Leave one image for each'):
        read_yolo(tmp_path, ['ant'])


def test_yolo_reads_thousands_of_objects_in_an_image(tmp_path):
    text = '\n'.join(f'0 {x/100:.2f} .5 .01 .01' for x in range(5, 95) for _ in range(30))
    assert len(read_text(tmp_path, text).labels) == 2700


# Outlines

POSES = ['.45 .45', '.45 .46 '*17, '.45 .45 0 0 .55 .52', '.45 .45 1 .55 .55 0', '.45 .45 2 .55 .55 2']
TRACKS = ['.93 1', '.93 7']


@pytest.mark.parametrize('more', POSES + TRACKS)
def test_yolo_poses_and_tracks_are_not_outlines(more, tmp_path):
    with pytest.raises(ValueError, match='[Kk]eep the first 5 numbers'):
        read_text(tmp_path, f'0 .5 .5 .2 .2 {more}\n'*5)


OUTLINES = ['.3 .3 .1 .1 .3 .34', '.5 .5 .3 .2 .6 1.0', '.5 .4 .2 .7 .4 0', '.9 .9 1.12 .9 1 1']


@pytest.mark.parametrize('outline', OUTLINES)
def test_yolo_a_few_outlines_among_boxes_are_outlines(outline, tmp_path):
    "Although each could be a box with a point"
    assert len(read_text(tmp_path, f'0 {outline}\n'*2 + LINE*5).labels) == 7


def test_yolo_outlines_are_read_wherever_they_lie(tmp_path):
    "Over the border by a little, and in the middle, where the first numbers might be a box"
    angle = np.linspace(0, 2*np.pi, 12, endpoint=False)
    circle = .09*np.stack([np.cos(angle), np.sin(angle)], 1)
    for centre in [(x/10, y/10) for x in range(11) for y in range(11)]:
        corners = ' '.join(f'{v:.4f}' for v in (centre + circle).ravel())
        assert len(read_text(tmp_path, f'0 {corners}').labels) == 1, centre


def test_yolo_boxes_may_all_lie_in_the_first_pixel(tmp_path):
    assert len(read_text(tmp_path, '0 .005 .005 .01 .01').labels) == 1


# Refusals

BAD = {
    'unknown class': ('2 .5 .5 .1 .1', 'a.txt line 1: class 2 has no name; .0, 1. have names. Fix'),
    'half a class': ('0.5 .5 .5 .1 .1', 'a.txt line 1: class 0.5 has no name'),
    'negative class': ('\n-1 .5 .5 .1 .1', 'a.txt line 2: class -1 has no name'),
    'word': ('ant .5 .5 .1 .1', "a.txt line 1: could not convert string to float: 'ant'"),
    'NaN': ('0 nan .5 .1 .1', "a.txt line 1: 'nan' is not a number"),
    'infinite': ('0 inf .5 .1 .1', "a.txt line 1: 'inf' is not a number"),
    'NaN in an outline': ('0 .1 .1 .5 nan nan .5 .2 .3', "a.txt line 1: 'nan' is not a number"),
    'infinity in an outline': ('0 .1 .1 .5 inf .2 .3', "a.txt line 1: 'inf' is not a number"),
    'line in a class': ('1_0 .5 .5 .2 .2', "a.txt line 1: '1_0' is not a number"),
    'line in a fraction': ('0 .5 .5 .2 0.1_5', "a.txt line 1: '0.1_5' is not a number"),
    'class in another script': ('٣ .5 .5 .1 .1', "a.txt line 1: '٣' is not a number"),
    'fraction in another script': ('0 .5 .5 .1 .٣', "a.txt line 1: '.٣' is not a number"),
    'pixels': ('0 40 30 20 10', 'a.txt line 1: 40 is not a normalised coordinate. Divide x by the width'),
    'negative size': ('0 .5 .5 -.1 .1', r'boxes of negative size: a.png'),
    'score': ('0 .5 .5 .1 .1 .9', 'a.txt line 1: 6 numbers, but a box has 5'),
    'cut off': ('0 .5 .5 .1', 'a.txt line 1: 4 numbers'),
}


@pytest.mark.parametrize('name', BAD)
def test_yolo_refuses(name, tmp_path):
    text, message = BAD[name]
    with pytest.raises(ValueError, match=message): read_text(tmp_path, text, ['ant', 'bee'])


def test_yolo_errors_name_files_in_long_paths(tmp_path):
    with pytest.raises(ValueError, match=r'\.\.\.e+/a.txt line 1: class 7 has no name; \[0\] have names. Fix'):
        read_text(tmp_path/('d'*100)/('e'*100), '7 .5 .5 .1 .1')


def test_yolo_refuses_a_class_of_many_digits(tmp_path):
    "Nothing is counted up to it where nothing names the classes"
    write_files(tmp_path, {'a': None, 'a.txt': '1e12 .5 .5 .1 .1'})
    message = r'class 1e\+12 has no name. Fix'
    with pytest.raises(ValueError, match=message): read_yolo(tmp_path)


def test_yolo_classes_without_names_are_numbers(tmp_path):
    write_layout('yolo roboflow', tmp_path)
    (tmp_path/'data.yaml').unlink()
    assert [read_split(tmp_path, split).names for split in SPLITS] == [['0', '1'], ['0']]
