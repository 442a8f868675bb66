"Pascal VOC's XML: how pixels are counted, which images belong to it, and what is refused."
import re
from pathlib import Path

import pytest
from layouts import EVERYTHING, HEIGHT, OBJECTS, WIDTH, every, stems, voc, write, write_image, write_layout
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


def test_voc_notes_images_without_a_file(tmp_path):
    every('.', '{name}.xml', voc)(tmp_path)
    (tmp_path/'c.xml').unlink()
    assert '1 images without an XML file are left out' in read_split(tmp_path, 'all').notes[0]


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
    message = 'train.txt: names that lack an XML file or an image in .*data: ../b. Add the files'
    with pytest.raises(ValueError, match=message): read_split(tmp_path/'data', 'train')
    write(tmp_path/'data/ImageSets/Main/train.txt', 'a\na\n')
    with pytest.raises(ValueError, match='listed more than once'): read_split(tmp_path/'data', 'train')


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
    'no name': ('<annotation><object/></annotation>', 'a.xml: <object> has no <name>'),
    'blank name': (voc('a').replace('ant', ' '), 'a.xml: <object> has no <name>'),
    'no box': ('<annotation><object><name>ant</name></object></annotation>', 'a.xml: <object> has no <bndbox/xmin>'),
    'word': (voc('a').replace(XMIN, '<xmin>left<'), "a.xml: <bndbox/xmin>: could not convert .*: 'left'"),
    'NaN': (voc('a').replace(XMIN, '<xmin>nan<'), "a.xml: <bndbox/xmin>: 'nan' is not a number"),
    'line': (voc('a').replace(XMIN, '<xmin>1_0<'), "a.xml: <bndbox/xmin>: '1_0' is not a number"),
    'digits of another script': (voc('a').replace(XMIN, '<xmin>٣<'), "a.xml: <bndbox/xmin>: '٣' is not a number"),
    'size of NaN': (voc('a').replace(SIDE, '<width>nan<'), "a.xml: <size/width>: 'nan' is not a number"),
    'endless': (voc('a').replace(SIDE, '<width>inf<'), "a.xml: <size/width>: 'inf' is not a number"),
    'size': (voc('a').replace(SIDE, '<width>wide<'), "a.xml: <size/width>: could not convert .*: 'wide'"),
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
    with pytest.raises(ValueError, match='no box ends beyond the first pixel. COCO and VOC need pixels'):
        read_split(tmp_path, 'all')
