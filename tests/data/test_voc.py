"Pascal VOC's XML: how pixels are counted, which images belong to it, and what is refused."
import re
from pathlib import Path

import pytest
from layouts import EVERYTHING, OBJECTS, WIDTH, labeled, labeled_voc, stems, voc, write, write_files, write_image
from layouts import HEIGHT, write_layout
from PIL import Image

from cjm_yolox_pytorch.data import voc as voc_module
from cjm_yolox_pytorch.data.splits import find_splits, read_split
from cjm_yolox_pytorch.data.voc import read_voc

BOXES_OF_A = [[*box] for _, *box in OBJECTS['a']]


def test_voc_reads_what_lists_name(tmp_path):
    write_layout('voc official', tmp_path)
    write(tmp_path/'Annotations/z.xml', 'broken')
    assert [len(read()) for read in find_splits(tmp_path).values()] == [2, 1]
    for split in ('vaal', 'all'):
        with pytest.raises(ValueError, match=rf"has no split '{split}': choose one of \['ant_train', 'train', 'val'\]"):
            read_voc(tmp_path, split)


def test_voc_knows_other_names_of_a_folder(tmp_path):
    write_layout('voc roboflow', tmp_path)
    assert stems(read_voc(tmp_path, 'valid')) == stems(read_voc(tmp_path, 'val')) == ['c']


def test_voc_lists_of_one_class_are_no_splits(tmp_path):
    write_layout('voc official', tmp_path)
    assert 'ant_train' not in find_splits(tmp_path)
    assert stems(read_voc(tmp_path, 'ant_train')) == ['a', 'b']
    (tmp_path/'ImageSets/Main/train.txt').unlink()
    assert stems(read_split(tmp_path, 'ant_train')) == ['a', 'b']


def test_voc_lists_may_have_flags(tmp_path):
    write_layout('voc official', tmp_path)
    Image.new('L', (WIDTH, HEIGHT)).save(tmp_path/'JPEGImages/b -1.png')
    write(tmp_path/'Annotations/b -1.xml', voc('b'))
    write(tmp_path/'ImageSets/Main/train.txt', 'a  1\nb -1\nc 0\n')
    assert stems(read_split(tmp_path, 'train')) == ['a', 'b -1', 'c']


def test_voc_reads_every_file_once(tmp_path, monkeypatch):
    write_layout('voc official', tmp_path)
    read = []
    read_bytes = voc_module.read_bytes
    monkeypatch.setattr(voc_module, 'read_bytes', lambda path: read.append(path.stem) or read_bytes(path))
    for reader in find_splits(tmp_path).values(): reader()
    assert sorted(read) == EVERYTHING


def test_voc_filename_tells_an_image_from_its_mask(tmp_path):
    write_layout('voc official', tmp_path)
    Image.new('L', (WIDTH, HEIGHT)).save(tmp_path/'JPEGImages/a.bmp')
    assert Path(read_split(tmp_path, 'train').paths[0]).name == 'a.png'
    write(tmp_path/'Annotations/a.xml', voc('a', filename='renamed'))
    message = 'differ only in their extension: .*a.bmp, .*a.png. Leave one'
    with pytest.raises(ValueError, match=message): read_split(tmp_path, 'train')


@pytest.mark.parametrize('count, kind', [(10, 'stops'), (11, 'notes')])
def test_voc_counts_images_without_a_file(count, kind, tmp_path):
    "A tenth stops"
    write_files(tmp_path, labeled(*'abcdefghijkl'[:count - 1], text=lambda name: voc('a'), suffix='.xml'))
    write_image(tmp_path, 'z')
    found = read_split(tmp_path, 'all')
    text = f'1 of {count} images have no XML file and are left out, such as {tmp_path}/z.png'
    if kind == 'stops': text += '. Label them or remove them'
    assert getattr(found, kind) == [text] and len(found.notes + found.stops) == 1


def test_voc_lists_leave_images_out_on_purpose(tmp_path):
    write_layout('voc official', tmp_path)
    write_image(tmp_path/'JPEGImages', 'd')
    assert all(not a.notes + a.stops for a in (read() for read in find_splits(tmp_path).values()))


@pytest.mark.parametrize('layout', ['voc official', 'voc without lists'])
def test_voc_shows_names_that_do_not_match_side_by_side(layout, tmp_path):
    write_layout(layout, tmp_path)
    folder = tmp_path/('JPEGImages' if layout == 'voc official' else 'images')
    for name in 'ac': (folder/f'{name}.png').rename(folder/f'photo_{name}.png')
    fix = 'If they belong to the 2 images without an XML file, such as photo_a, name them alike'
    message = f'XML files that lack an image in .*: a(; c)?. {fix}'
    with pytest.raises(ValueError, match=message): next(iter(find_splits(tmp_path).values()))()


def test_voc_counts_pixels_from_0_if_a_box_begins_there(tmp_path):
    "Even if another one is over the border"
    write_layout('voc cvat', tmp_path)
    assert read_split(tmp_path, 'all').notes == ['pixels are counted from 0, since some box begins there']
    write(tmp_path/'Annotations/c.xml', voc('c', 0).replace('<xmin>40<', '<xmin>-3<'))
    found = read_split(tmp_path, 'all')
    assert found.objects(0)[0].tolist() == BOXES_OF_A and 'counted from 0' in found.notes[0]


def test_voc_counts_pixels_from_1_if_a_box_crosses_the_border(tmp_path):
    write_layout('voc official', tmp_path)
    write(tmp_path/'Annotations/c.xml', voc('c').replace('<xmin>41<', '<xmin>-3<'))
    found = read_split(tmp_path, 'train')
    assert not found.notes and found.objects(0)[0].tolist() == BOXES_OF_A


def test_voc_reads_float_coordinates(tmp_path):
    write_layout('voc official', tmp_path)
    write(tmp_path/'Annotations/a.xml', voc('a').replace('<xmin>9<', '<xmin>9.25<').replace('<ymax>30<', '<ymax>3e1<'))
    assert read_split(tmp_path, 'train').objects(0)[0].tolist()[0] == [8.25, 6, 40, 30]


def test_voc_looks_for_images_in_its_folders_alone(tmp_path):
    write_layout('voc official', tmp_path/'data')
    for filename in ('../../etc/passwd', '/etc/passwd'): # Not followed
        write(tmp_path/'data/Annotations/a.xml', voc('a', filename=filename))
        assert read_split(tmp_path/'data', 'train').paths[0] == str(tmp_path/'data/JPEGImages/a.png')
    write_image(tmp_path, 'b')
    write(tmp_path/'b.xml', voc('b'))
    write(tmp_path/'data/ImageSets/Main/train.txt', '../b\na\n')
    message = 'train.txt: names that lack an XML file in .*data: ../b. Add the files'
    with pytest.raises(ValueError, match=message): read_split(tmp_path/'data', 'train')
    write(tmp_path/'data/ImageSets/Main/train.txt', 'a\na\n')
    with pytest.raises(ValueError, match='listed more than once'): read_split(tmp_path/'data', 'train')


# Several where one is expected, and outlines

def bndbox(*corners): return ''.join(f'<{n}>{v}</{n}>' for n, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), corners))


def outlined(shape, more=''): return f'<annotation><object><name>ant</name>{shape}{more}</object></annotation>'


def boxes_of_a(tmp_path, text):
    write_files(tmp_path, {'a': None, 'a.xml': text})
    found = read_split(tmp_path, 'all')
    return [[found.names[label], *box] for label, box in zip(found.labels, found.boxes.tolist())]


def test_voc_reads_every_bndbox(tmp_path):
    shape = ''.join(f'<bndbox>{bndbox(*box)}</bndbox>' for box in ((1, 1, 9, 9), (11, 11, 19, 19), (21, 21, 29, 29)))
    expected = [['ant', 0, 0, 9, 9], ['ant', 10, 10, 19, 19], ['ant', 20, 20, 29, 29]]
    assert boxes_of_a(tmp_path, outlined(shape)) == expected


def test_voc_parts_are_not_objects(tmp_path):
    head = f'<part><name>head</name><bndbox>{bndbox(3, 3, 5, 5)}</bndbox></part>'
    text = outlined(f'<bndbox>{bndbox(1, 1, 9, 9)}</bndbox>', head)
    assert boxes_of_a(tmp_path, text) == [['ant', 0, 0, 9, 9]]


LABELME = '<polygon><username>me</username>{}</polygon>'.format(''.join(
    f'<pt><x>{x}</x><y>{y}</y></pt>' for x, y in ((4, 6), (40, 7), (9, 30))))
FLAT = '<polygon><x1>4</x1><y1>6</y1><x2>40</x2><y2>7</y2><x3>9</x3><y3>30</y3></polygon>'


@pytest.mark.parametrize('shape', [LABELME, FLAT], ids=['labelme', 'flat'])
def test_voc_reads_the_bounds_of_an_outline(shape, tmp_path):
    "Its points are places, not pixels that are counted from 1; a box beside it takes precedence"
    assert boxes_of_a(tmp_path, outlined(shape)) == [['ant', 4, 6, 40, 30]]
    assert boxes_of_a(tmp_path, outlined(shape, f'<bndbox>{bndbox(1, 1, 9, 9)}</bndbox>')) == [['ant', 0, 0, 9, 9]]


def test_voc_outlines_do_not_tell_where_pixels_begin(tmp_path):
    write_files(tmp_path, labeled_voc('a'))
    write(tmp_path/'a.xml', voc('a').replace('</annotation>', outlined(FLAT.replace('>4<', '>0<'))[12:]))
    found = read_split(tmp_path, 'all')
    assert found.objects(0)[0].tolist() == [*BOXES_OF_A, [0, 6, 40, 30]] and not found.notes


def test_voc_leaves_out_what_labelme_deleted(tmp_path):
    text = voc('a').replace('<name>bee</name>', '<name>bee</name><deleted>1</deleted>')
    assert boxes_of_a(tmp_path, text.replace('<name>ant</name>', '<name>ant</name><deleted>0</deleted>')) == [
        ['ant', 0, 0, 16, 12]]


def test_voc_strips_blanks_around_names(tmp_path):
    assert boxes_of_a(tmp_path, voc('a').replace('ant', '\n\u00a0ant \n'))[1] == ['ant', 0, 0, 16, 12]


# Where XML files and images are

def test_voc_refuses_several_xml_files_for_an_image(tmp_path):
    write_files(tmp_path, {**labeled_voc('a'), 'a.XML': voc('b')})
    for other in ('a.XML', 'a.png.xml'):
        with pytest.raises(ValueError, match='XML files for the same image: .*a.xml.*. Leave one'):
            find_splits(tmp_path)
        (tmp_path/'a.XML').unlink(missing_ok=True)
        write(tmp_path/'a.png.xml', voc('b'))


def test_voc_reads_xml_files_named_with_the_suffix_of_the_image(tmp_path):
    write_files(tmp_path, {'a': None, 'a.png.xml': voc('a')})
    write_image(tmp_path, 'b')
    write(tmp_path/'b.png.xml', voc('b'))
    assert stems(read_split(tmp_path, 'all')) == ['a', 'b']


def test_voc_lists_may_name_images_with_their_suffix(tmp_path):
    write_layout('voc official', tmp_path)
    write(tmp_path/'ImageSets/Main/train.txt', 'a.png\nb.jpg 1\n')
    assert stems(read_split(tmp_path, 'train')) == ['a', 'b']


def test_voc_images_may_be_elsewhere(tmp_path):
    for name in ('voc official', 'voc folders of both', 'voc folders below both', 'voc in one folder'):
        root = tmp_path/name
        splits = write_layout(name, root)
        for image in sorted(root.rglob('*.png')):
            split = next((s for s in ('train', 'val') if s in image.parts), '')
            (tmp_path/'away'/name/split).mkdir(parents=True, exist_ok=True)
            image.rename(tmp_path/'away'/name/split/image.name)
        found = find_splits(root, images=tmp_path/'away'/name)
        assert {split: stems(read()) for split, read in found.items()} == splits
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder of images'):
        find_splits(root, images=tmp_path/'nowhere')


@pytest.mark.parametrize('layout', ['voc official', 'voc without lists'])
def test_voc_matches_names_in_other_unicode_forms(layout, tmp_path):
    "Labels as most programs write them, images as macOS unzips them"
    write_layout(layout, tmp_path)
    for path in sorted(tmp_path.rglob('a.*')):
        form = 'cafe\u0301' if path.suffix == '.png' else 'caf\u00e9'
        path.rename(path.with_name(form + path.suffix))
    for path in tmp_path.rglob('train.txt'): write(path, 'cafe\u0301\nb\n')
    found = next(iter(find_splits(tmp_path).values()))()
    [i] = [i for i, stem in enumerate(stems(found)) if stem.startswith('caf')]
    assert len(found) == (2 if layout == 'voc official' else 3) and found.objects(i)[0].tolist() == BOXES_OF_A


# Refusals

LAUGHS_16 = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE l [<!ENTITY a "ha">]><annotation>&a;</annotation>'
XMIN, SIDE = '<xmin>9<', f'<width>{WIDTH}<'
BAD = {
    'cut off': (
        '<annotation><object>',
        'a.xml: not readable as XML: no element found: line 1, column 20. Save it again'),
    'empty': ('', 'a.xml: not readable as XML'),
    'binary': ('\x00\x01', 'a.xml: not readable as XML'),
    'laughs': ('<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>',
               'a.xml: declares a document type or entities, which are not needed. Remove them'),
    'laughs in UTF-16': (LAUGHS_16.encode('utf-16'), 'a.xml: declares a document type or entities'),
    'several bytes': (('<?xml version="1.0" encoding="gb2312"?>' + voc('a').replace('ant', '猫')).encode('gb2312'),
                      'a.xml: not readable as XML: multi-byte encodings are not supported. .* in UTF-8'),
    'another kind': ('<annotations><image/></annotations>', 'not Pascal VOC, since it begins with <annotations>'),
    'no name': (voc('a').replace('<name>ant</name>', ''), 'a.xml: <object> has no <name>'),
    'blank name': (voc('a').replace('ant', ' '), 'a.xml: <object> has no <name>'),
    'no box': (outlined(''), 'a.xml: <object> has neither <bndbox> nor <polygon>'),
    'no xmin': (voc('a').replace('<xmin>9</xmin>', ''), 'a.xml: <bndbox> has no <xmin>'),
    'word': (voc('a').replace(XMIN, '<xmin>left<'), "a.xml: <bndbox/xmin>: could not convert .*: 'left'"),
    'NaN': (voc('a').replace(XMIN, '<xmin>nan<'), "a.xml: <bndbox/xmin>: 'nan' is not a number"),
    'line': (voc('a').replace(XMIN, '<xmin>1_0<'), "a.xml: <bndbox/xmin>: '1_0' is not a number"),
    'digits of another script': (voc('a').replace(XMIN, '<xmin>٣<'), "a.xml: <bndbox/xmin>: '٣' is not a number"),
    'size of NaN': (voc('a').replace(SIDE, '<width>nan<'), "a.xml: <size/width>: 'nan' is not a number"),
    'endless': (voc('a').replace(SIDE, '<width>inf<'), "a.xml: <size/width>: 'inf' is not a number"),
    'size': (voc('a').replace(SIDE, '<width>wide<'), "a.xml: <size/width>: could not convert .*: 'wide'"),
    'several names': (voc('a').replace('<name>', '<name>fly</name><name>'), 'a.xml: <object> has 2 <name> instead'),
    'several xmin': (voc('a').replace('<xmin>9<', '<xmin>1</xmin><xmin>9<'), 'a.xml: <bndbox> has 2 <xmin>'),
    'several widths': (voc('a').replace('<width>', '<width>8</width><width>'), 'a.xml: <size> has 2 <width>'),
    'several sizes': (voc('a').replace('<size>', '<size/><size>'), 'a.xml: <annotation> has 2 <size>'),
    'several filenames': (voc('a').replace('<size>', '<filename>b.png</filename><size>'), 'has 2 <filename>'),
    'several outlines': (outlined(FLAT + FLAT), 'a.xml: <object> has 2 <polygon> instead of one'),
    'an outline of words': (outlined(FLAT.replace('>4<', '>four<')), "a.xml: <polygon/x1>: could not convert"),
    'an outline without a y': (outlined(FLAT.replace('<y3>30</y3>', '')), 'a.xml: <polygon> has no <y3>'),
    'an outline of 2 points': (outlined('<polygon><x1>4</x1><y1>6</y1><x2>8</x2><y2>9</y2></polygon>'),
                               'a.xml: <polygon> has 2 points instead of 3 or more'),
    'negative size': (voc('a').replace(XMIN, '<xmin>70<'), r'boxes of negative size: a.png: box \[70, 7, 40, 30\]'),
}


@pytest.mark.parametrize('name', BAD)
def test_voc_refuses(name, tmp_path):
    text, message = BAD[name]
    write_layout('voc official', tmp_path)
    write(tmp_path/'Annotations/a.xml', text)
    with pytest.raises(ValueError, match=message): read_split(tmp_path, 'train')


def test_voc_refuses_fractions(tmp_path):
    write_layout('voc in one folder', tmp_path)
    corners = dict(min='.2', max='.7')
    for name in EVERYTHING:
        text = re.sub(r'<([xy])(min|max)>\d+', lambda m: f'<{m[1]}{m[2]}>{corners[m[2]]}', voc(name))
        write(tmp_path/f'{name}.xml', text)
    with pytest.raises(ValueError, match='no box ends beyond the first pixel, as if these were fractions'):
        read_split(tmp_path, 'all')
