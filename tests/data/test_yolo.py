"YOLO's text files: boxes and outlines, files that belong together, and what is refused."
import os
import re
from unicodedata import normalize

import numpy as np
import pytest
from layouts import LINE, SPLITS, every, labeled, write, write_files, write_image, write_layout, yolo

from cjm_yolox_pytorch.data.splits import find_splits, read_split
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


def named(folder, name):
    "An image of any name"
    write_image(folder/'new', 'a')
    (folder/'new/a.png').rename(folder/f'{name}.png')
    (folder/'new').rmdir()


def write_images(root, labeled, bare=(), orphans=()):
    "Images `i`, each with a label file `l` of the same name, without one, or the other way round"
    for name in labeled: write_files(root, {f'images/{name}': None, f'labels/{name}.txt': LINE})
    for name in bare: write_image(root/'images', name)
    for name in orphans: write(root/f'labels/{name}.txt', LINE)


LETTERS = 'abcdefghijklmnopqrst'


def test_yolo_notes_images_without_a_label_file_if_they_are_few(tmp_path):
    write_images(tmp_path, LETTERS, bare='y')
    a = read_yolo(tmp_path/'images', ['ant'])
    message = f'1 of 21 images have no label file, which means no objects, such as {tmp_path}/images/y.png'
    assert (a.notes, a.stops) == ([message], [])
    write_images(tmp_path, '', bare='yz')
    assert read_yolo(tmp_path/'images', ['ant']).stops == []


def test_yolo_stops_if_a_tenth_of_the_images_has_no_label_file(tmp_path):
    write_images(tmp_path, LETTERS[:18], bare='yz')
    a = read_yolo(tmp_path/'images', ['ant'])
    start = f'2 of 20 images have no label file, which means no objects, such as {tmp_path}/images/y.png. '
    end = 'They would be learned as background. Label them, or add empty label files where there are no objects'
    assert (a.notes, a.stops) == ([], [start + end])
    for name in 'yz': write(tmp_path/f'labels/{name}.txt', '')
    a = read_yolo(tmp_path/'images', ['ant'])
    assert (a.notes, a.stops, len(a), len(a.labels)) == ([], [], 20, 18)


def test_yolo_notes_labels_without_an_image_if_they_are_few(tmp_path):
    write_images(tmp_path, LETTERS, orphans='y')
    a = read_yolo(tmp_path/'images', ['ant'])
    message = f'1 of 21 label files have no image in a format that is read, such as {tmp_path}/labels/y.txt'
    assert (a.notes, a.stops) == ([message], [])


def test_yolo_stops_if_a_tenth_of_the_labels_has_no_image(tmp_path):
    write_images(tmp_path, LETTERS[:18], orphans='yz')
    a = read_yolo(tmp_path/'images', ['ant'])
    start = f'2 of 20 label files have no image in a format that is read, such as {tmp_path}/labels/y.txt. '
    assert (a.notes, a.stops) == ([], [start + 'Add or convert the images'])


def test_yolo_counts_labels_of_the_whole_folder(tmp_path):
    "A list may name a few of its images"
    write_images(tmp_path, LETTERS, orphans='y')
    assert read_yolo([tmp_path/'images/a.png'], ['ant']).stops == []


def test_yolo_stops_where_images_and_labels_have_different_names(tmp_path):
    "However few there are; the message shows a pair that belongs together"
    write_images(tmp_path, LETTERS[1:], orphans=['frame_00', 'frame_01', 'frame_02'])
    for name in ('frame-01', 'frame-02'): named(tmp_path/'images', name)
    a = read_yolo(tmp_path/'images', ['ant'])
    assert a.notes == []
    pair = f'such as {tmp_path}/images/frame-01.png and {tmp_path}/labels/frame_01.txt. Name each label file like its'
    assert len(a.stops) == 1 and '2 images without a label file and 3 label files without an image' in a.stops[0]
    assert pair in a.stops[0]


def test_yolo_without_any_label_of_the_same_name_shows_a_pair(tmp_path):
    write_images(tmp_path, '', orphans=['x_b', 'x_c'])
    write_images(tmp_path, '', bare='bc')
    message = 'no image has a label file. .*images/b.png and .*labels/x_b.txt have different names. Name each'
    with pytest.raises(FileNotFoundError, match=message): read_yolo(tmp_path/'images', ['ant'])


def test_yolo_names_images_of_an_unsupported_extension(tmp_path):
    write_images(tmp_path, LETTERS)
    write_files(tmp_path, {'images/y.heic': b'', 'labels/y.txt': LINE})
    a = read_yolo(tmp_path/'images', ['ant'])
    message = f'1 of 21 label files have no image in a format that is read, such as {tmp_path}/labels/y.txt'
    assert (a.notes, a.stops) == ([message], [])
    write_files(tmp_path, {'images/z.AVIF': b'', 'labels/z.AVIF.txt': LINE, 'images/x.heic': b'', 'labels/x.txt': LINE})
    stop, = read_yolo(tmp_path/'images', ['ant']).stops
    assert stop.startswith('3 of 23 label files have no image in a format that is read')
    assert stop.endswith('Add or convert the images')


def test_yolo_other_text_files_are_not_labels(tmp_path):
    "Lists of images, notes, class lists"
    write_images(tmp_path, 'ab')
    write_files(tmp_path, {'labels/classes.txt': '0 1 2 3 4', 'labels/list.txt': '000001\n000002\n000003\n000004\n5'})
    write_files(tmp_path, {'labels/notes.txt': '2 images are missing', 'images/README.txt': 'x', 'labels/z.txt': ''})
    a = read_yolo(tmp_path/'images', ['ant'])
    assert (a.notes, a.stops) == ([], [])


# Names

NFC, NFD = normalize('NFC', 'caf\u00e9'), normalize('NFD', 'caf\u00e9')


@pytest.mark.parametrize('image, label', [(NFD, NFC), (NFC, NFD), (NFD, NFD)])
def test_yolo_matches_names_in_another_unicode_form(image, label, tmp_path):
    for name in 'ab': write_files(tmp_path, {f'images/{name}': None, f'labels/{name}.txt': LINE})
    named(tmp_path/'images', image)
    write(tmp_path/f'labels/{label}.txt', LINE)
    a = read_split(tmp_path, 'all')
    assert (np.diff(a.starts).tolist(), a.stops) == ([1, 1, 1], [])


def test_yolo_matches_folders_in_another_unicode_form(tmp_path):
    named(tmp_path/'images'/NFD, 'a')
    write(tmp_path/'labels'/NFC/'a.txt', LINE)
    assert len(read_yolo(tmp_path/'images', ['ant']).labels) == 1
    write(tmp_path/'data.yaml', f'train: images/{NFC}\nnames: [ant]')
    assert len(read_split(tmp_path, 'train').labels) == 1
    write(tmp_path/'data.yaml', 'train: list.txt\nnames: [ant]')
    write(tmp_path/'list.txt', f'images/{NFC}/a.png')
    assert len(read_split(tmp_path, 'train').labels) == 1


@pytest.mark.parametrize('images, labels, message', [
    ([NFC, NFD], [NFC], r'images that share a label file: .*\(NFD\), .*\(NFC\)'),
    ([NFC, NFD], [NFC, NFD], r'has several label files: .*\(NFD\); .*\(NFC\)'),
    ([NFC], [NFC, NFD], r'has several label files: .*\(NFD\); .*\(NFC\)')])
def test_yolo_refuses_names_that_differ_only_in_their_unicode_form(images, labels, message, tmp_path):
    for name in images: named(tmp_path/'images', name)
    for name in labels: write(tmp_path/f'labels/{name}.txt', LINE)
    with pytest.raises(ValueError, match=message): read_yolo(tmp_path/'images', ['ant'])


@pytest.mark.parametrize('image, label', [
    ('images/a', 'labels/a.png.txt'), ('a', 'a.png.txt'), ('train/images/a', 'train/labels/a.png.txt')])
def test_yolo_reads_labels_named_after_the_whole_file(image, label, tmp_path):
    write_files(tmp_path, {image: None, label: LINE})
    a, = [read() for read in find_splits(tmp_path).values()]
    assert (len(a.labels), a.stops) == (1, [])


def test_yolo_refuses_two_label_files_of_one_image(tmp_path):
    write_files(tmp_path, {'images/a': None, 'labels/a.txt': LINE, 'labels/a.png.txt': LINE})
    message = 'images/a.png has several label files: .*labels/a.txt; .*labels/a.png.txt. Keep one of them'
    with pytest.raises(ValueError, match=message): read_yolo(tmp_path/'images', ['ant'])
    (tmp_path/'labels/a.png.txt').rename(tmp_path/'images/a.txt') # A copy beside the image is harmless
    assert len(read_yolo(tmp_path/'images', ['ant']).labels) == 1
    write(tmp_path/'images/a.txt', LINE*2)
    message = 'several label files: .*labels/a.txt; .*images/a.txt. Keep one of them'
    with pytest.raises(ValueError, match=message): read_yolo(tmp_path/'images', ['ant'])


def test_yolo_label_that_is_a_broken_link_is_not_missing(tmp_path):
    write_files(tmp_path, {'images/a': None, 'labels/b.txt': LINE, 'images/b': None})
    (tmp_path/'labels/a.txt').symlink_to('nowhere')
    with pytest.raises(OSError, match='labels/a.txt cannot be read'): read_yolo(tmp_path/'images', ['ant'])


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
    write_files(root, {**labeled('a'), 'classes.txt': 'ant'})
    write(tmp_path/'labels/ds/a.txt', '0 .1 .1 .1 .1')
    beside, elsewhere = [[32, 24, 48, 36]], [[4, 3, 12, 9]]
    assert read_split(root, 'all').boxes.tolist() == beside
    write(root/'data.yaml', 'train: .\nnames: [ant]')
    assert read_split(root, 'train').boxes.tolist() == beside
    (root/'a.txt').unlink()
    write(tmp_path/'data.yaml', 'path: images\ntrain: ds\nnames: [ant]') # Here the folder of labels is part of the data
    assert read_split(tmp_path/'data.yaml', 'train').boxes.round().tolist() == elsewhere


def test_yolo_images_do_not_share_a_label_file(tmp_path):
    write_files(tmp_path, {**labeled('a'), 'a.jpg': b''})
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
    'unknown class': ('2 .5 .5 .1 .1', 'a.txt line 1: class 2 has no name; .0, 1. have names, counting from 0. Fix'),
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
    'pixels': ('0 40 30 20 10', 'a.txt line 1: 40 is not a normalized coordinate. It looks like pixels: divide x'),
    'negative size': ('0 .5 .5 -.1 .1', r'boxes of negative size: a.png'),
    'score': ('0 .5 .5 .1 .1 .9', 'line 1: 6 numbers, .*The sixth is perhaps the confidence of a prediction: remove'),
    'pixels of an outline': ('0 40 30 60 30 60 70', 'line 1: 40 is not a normalized coordinate. It looks like pix'),
    'percent': ('0 40 30 1.5 1', 'a.txt line 1: 40 is not a normalized coordinate'),
    'commas': ('0,0.5,0.5,0.1,0.1', "a.txt line 1: '0,0.5,0.5,0.1,0.1' has commas. Write blanks between numbers"),
    'decimal commas': ('0 0,5 0,5 0,1 0,1', 'a.txt line 1: .* has commas. .* decimal points'),
    'counted from 1': ('1 .5 .5 .1 .1\n2 .5 .5 .1 .1', 'line 2: class 2 has no name; .0, 1. have names, counting'),
    'cut off': ('0 .5 .5 .1', 'a.txt line 1: 4 numbers'),
}


@pytest.mark.parametrize('name', BAD)
def test_yolo_refuses(name, tmp_path):
    text, message = BAD[name]
    with pytest.raises(ValueError, match=message): read_text(tmp_path, text, ['ant', 'bee'])


READ = {
    'a mark at the beginning': '\ufeff0 .5 .5 .2 .2', 'lines of Windows': '0 .5 .5 .2 .2\r\n\r\n',
    'tabs': '0\t.5\t.5\t.2\t.2', 'blanks around': '  0  .5 .5 .2 .2  ', 'a class with a point': '0.0 .5 .5 .2 .2',
    'exponents': '0 5e-1 5E-1 .2 2e-1'}


@pytest.mark.parametrize('text', READ.values(), ids=READ)
def test_yolo_reads_lines_of_many_programs(text, tmp_path):
    assert read_text(tmp_path, text).boxes.round(4).tolist() == [[32, 24, 48, 36]]


def test_yolo_refuses_other_encodings(tmp_path):
    with pytest.raises(ValueError, match='a.txt: byte 0 is not UTF-8. Save the file as UTF-8'):
        read_text(tmp_path, '0 .5 .5 .2 .2'.encode('utf-16'))


def test_yolo_corners_in_place_of_centers_are_readable(tmp_path):
    "The checks recognize them by all boxes of a split"
    a = read_text(tmp_path, '0 .6 .6 .9 .9\n0 .1 .1 .3 .4\n0 0 0 1 1\n0 .8 .8 1 1')
    assert (len(a.labels), a.dropped) == (4, [])


def test_yolo_errors_name_files_in_long_paths(tmp_path):
    with pytest.raises(ValueError, match=r'd+/e+/a.txt line 1: class 7 has no name; \[0\] have names, counting'):
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


def test_yolo_notes_one_image_and_one_label_file_of_many(tmp_path):
    "An orphan beside a bare image stopped a set of any size"
    write_images(tmp_path, LETTERS, bare='y', orphans='z')
    a = read_yolo(tmp_path/'images', ['ant'])
    assert a.stops == [] and len(a.notes) == 1
    assert a.notes[0].startswith('1 image without a label file and 1 label file without an image, such as')


def test_yolo_names_all_classes_without_a_name_at_once(tmp_path):
    text = '\n'.join(f'{c} .5 .5 .2 .2' for c in [0, 7, 3, 3, 12, 3])
    message = 'line 2: class 7 has no name; .0. have names, counting from 0. Lines of each class without a name: '
    with pytest.raises(ValueError, match=re.escape('3 (3), 7 (1), 12 (1). Fix them')) as e: read_text(tmp_path, text)
    assert re.search(message, str(e.value))
