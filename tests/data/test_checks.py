"Checks of annotations before training."
from dataclasses import replace
from pathlib import Path

import pytest
from layouts import (
    CLASSES, LINE, NAMES, both, coco, every, labeled, write, write_files, write_image, write_layout, yolo)

from cjm_yolox_pytorch.commands.say import shown
from cjm_yolox_pytorch.data import prepare
from cjm_yolox_pytorch.data.annotations import build_annotations
from cjm_yolox_pytorch.data.checks import Fault, check, check_difficulty, check_splits, fault_lines
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
    assert a.names == ['0', '1'] and [f.kind for f in check(a)] == ['note', 'rare class']


def empty_voc(root):
    write_layout('voc official', root)
    write(root/'ImageSets/Main/train.txt', '')
    write(root/'ImageSets/Main/others.txt', 'a\nc')


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


def test_fault_lines_tell_notes_apart():
    faults = [Fault('note', '', 'one'), Fault('box', 'a', 'a: 1'), Fault('note', '', 'two'), Fault('box', 'b', 'b: 1'),
              Fault('note', '', 'one')]
    assert [*fault_lines(faults)] == ['note (2): one', 'box (2): a: 1 ...', 'note: two']


def test_prepare_prints_every_note(tmp_path, monkeypatch, capsys):
    write_layout('yolo images/train', tmp_path)
    notes = ['one', 'another', 'a third']
    find = prepare.find_splits
    monkeypatch.setattr(prepare, 'find_splits', lambda *args: {
        split: lambda read=read: replace(read(), notes=notes) for split, read in find(*args).items()})
    with shown(): prepare_splits(tmp_path)
    printed = capsys.readouterr().out
    assert [printed.count(note) for note in notes] == [2, 2, 2] # Training and validation


def write_flat_boxes(root, flat, total=20):
    for name in 'ab': write_image(root, name)
    boxes = [[n, 5, 0 if n < flat else 5, 5] for n in range(total)]
    objects = [dict(id=n, image_id=n % 2, category_id=1, bbox=box) for n, box in enumerate(boxes)]
    write(root/'train.json', dict(coco(['a', 'b']), annotations=objects))


@pytest.mark.parametrize('flat, stops', [(1, []), (2, ['2 of 20 boxes are left out']), (20, ['20 of 20 boxes are'])])
def test_check_stops_if_a_tenth_of_the_boxes_is_left_out(flat, stops, tmp_path):
    write_flat_boxes(tmp_path, flat)
    a = read_split(tmp_path, 'train')
    found = [f for f in check(a) if f.kind == 'missing data']
    assert [f.text.startswith(text) for f, text in zip(found, stops, strict=True)] == [True]*len(stops)
    assert all(f.stops and f.text.endswith('To train anyway, pass allow_missing (--allow-missing)') for f in found)
    allowed = [f for f in check(a, allow_missing=True) if f.kind == 'missing data']
    assert [f.stops for f in allowed] == [False]*len(stops)


def test_prepare_stops_for_missing_data_unless_allowed(tmp_path, capsys):
    write_flat_boxes(tmp_path, 5)
    message = r'5 of .* boxes are left out. To train anyway, pass allow_missing \(--allow-missing\)'
    with pytest.raises(ValueError, match=message):
        with shown(): prepare_splits(tmp_path, 'train', 'train')
    assert 'training on train' in capsys.readouterr().out
    with shown(): prepare_splits(tmp_path, 'train', 'train', allow_missing=True)
    assert 'training: missing data: 5 of 20 boxes are left out\n' in capsys.readouterr().out


def test_prepare_tells_what_stops_once_and_of_which_split(tmp_path, capsys):
    "In the error only; the printed lines fit into 80 columns"
    write_flat_boxes(tmp_path, 5)
    with pytest.raises(ValueError, match=r'^training split: missing data: .*; validation split: missing data'):
        with shown(): prepare_splits(tmp_path, 'train', 'train')
    assert 'missing' not in capsys.readouterr().out
    with shown(): prepare_splits(tmp_path, 'train', 'train', allow_missing=True)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_prepare_checks_a_split_before_a_tenth_is_held_out(tmp_path, capsys):
    "One of 30 boxes is left out, but it may be one of three in the held-out tenth; and notes are printed once"
    for n in range(20): write_image(tmp_path, chr(97 + n))
    images = [dict(id=n, file_name=f'{chr(97 + n)}.png', width=80, height=60) for n in range(20)]
    for flat in range(20):
        objects = [dict(id=n, image_id=n, category_id=1, bbox=[5, 5, 5*(n != flat), 5]) for n in range(20)]
        objects += [dict(o, id=o['id'] + 20, bbox=[20, 20, 5, 5]) for o in objects[:10]]
        write(tmp_path/'train.json', dict(coco(['a']), images=images, annotations=objects))
        with shown(): prepare_splits(tmp_path)
        assert capsys.readouterr().out.count('box left out: ') == 1


def test_prepare_says_that_too_few_images_have_objects(tmp_path):
    write_files(tmp_path, {**labeled('a', 'b', text=lambda _: ''), **labeled('c', text=lambda _: LINE)})
    message = 'only 1 of 3 images have objects, too few to hold some out. Give a validation split'
    with pytest.raises(ValueError, match=message): prepare_splits(tmp_path)


def test_check_turns_the_stops_of_a_reader_into_faults(tmp_path):
    write_layout('yolo images/train', tmp_path)
    a = replace(read_split(tmp_path, 'train'), stops=['6 images lack labels.', '6 labels lack an image'])
    texts = [(f.text, f.stops) for f in check(a) if f.kind == 'missing data']
    cure = '. To train anyway, pass allow_missing (--allow-missing)'
    assert texts == [(f'6 images lack labels{cure}', True), (f'6 labels lack an image{cure}', True)]
    assert not any(f.stops for f in check(a, allow_missing=True))


SIMILAR = [(['Cat', 'cat'], 1), (['traffic light', 'traffic_light', 'TrafficLight', 'traffic-light'], 1),
           (['cat', 'Cat', 'dog', 'd og'], 2), (['cat', 'cats', 'category'], 0)]


@pytest.mark.parametrize('names, groups', SIMILAR)
def test_check_names_similar_classes(names, groups, tmp_path):
    write_layout('yolo images/train', tmp_path)
    a = replace(read_split(tmp_path, 'train'), names=names)
    found = [f for f in check(a) if f.kind == 'similar classes']
    assert len(found) == groups and not any(f.stops for f in found)
    if groups == 1: assert all(repr(name) in found[0].text for name in names)


def test_check_splits_names_every_unknown_class_and_those_that_are_similar(tmp_path):
    write_layout('yolo images/train', tmp_path)
    train, val = (read_split(tmp_path, split) for split in ('train', 'val'))
    two = replace(train, names=['Ant', 'moon'])
    fault, = [f for f in check_splits(dict(train=train, other=two)) if f.kind == 'unknown class']
    assert "other has objects of ['Ant', 'moon'], which train does not have" in fault.text
    assert "Some differ only in how they are written: [['Ant', 'ant']]" in fault.text


def test_prepare_validates_on_training_images_if_both_are_named(tmp_path, capsys):
    write_layout('yolo images/train', tmp_path)
    with shown(): used = prepare_splits(tmp_path, train='train', val='train')
    assert [name for name, _ in used.values()] == ['train', 'train']
    assert 'metrics are those of training images' in ' '.join(capsys.readouterr().out.split())
    message = r'name it with both train and val \(--train, --val\)'
    with pytest.raises(ValueError, match=message): prepare_splits(tmp_path, val='train')


def with_counts(**counts):
    "A split with so many objects of each class"
    rows = [(0, label, 0, 0, 30 + k, 30) for label, n in enumerate(counts.values()) for k in range(n)]
    return build_annotations('here', [*counts], ['a.jpg'], [(2000, 2000)], rows)


def test_check_names_all_classes_with_few_objects_at_once():
    found = {f.kind: f for f in check(with_counts(ant=20, bee=19, cow=0, dog=1, eel=0))}
    assert {*found} == {'rare class', 'class without objects'} and not any(f.stops for f in found.values())
    assert found['rare class'].text.startswith('2 of 5 classes with fewer than 20 objects')
    assert found['rare class'].text.endswith(': dog (1), bee (19)')
    assert found['class without objects'].text.endswith(': cow, eel')


def test_lists_of_many_classes_are_cut():
    fault, = check(with_counts(**{f'c{n}': 1 for n in range(99)}))
    assert fault.text.startswith('99 of 99') and fault.text.endswith('c7 (1) and 91 more') and len(fault.text) < 240


@pytest.mark.parametrize('rare, told', [(49, 'bee (49)'), (50, None), (19, None)])
def test_check_difficulty_compares_classes_with_the_commonest(rare, told):
    "Below 20 a class is rare anyway"
    found = [f for f in check_difficulty(with_counts(ant=500, bee=rare), 416) if f.kind == 'imbalance']
    assert [f'as many as {told}' in f.text and 'ant has 500 objects' in f.text for f in found] == [True]*bool(told)


@pytest.mark.parametrize('images, told', [(2, True), (3, False)])
@pytest.mark.parametrize('bees', [12, 30]) # Also below 20
def test_balance_is_advised_for_outnumbered_classes_in_few_images(images, bees, told):
    "Ten images with ants, of which a few also have bees"
    rows = [(n % 10, 0, 0, 0, 30 + n, 30) for n in range(400)]
    rows += [(n % images, 1, 0, 0, 30 + n, 30) for n in range(bees)]
    a = build_annotations('here', ['ant', 'bee'], [f'{i}.jpg' for i in range(10)], [(2000, 2000)]*10, rows)
    found = [f.text for f in check_difficulty(a, 416) if f.kind == 'seldom shown']
    assert found == ['bee (2 of 10 images). To repeat them in training: balance=.3 (--balance .3)']*told


def without_val(root):
    write_layout('voc official', root)
    (root/'ImageSets/Main/val.txt').rename(root/'ImageSets/Main/test.txt')


@pytest.mark.parametrize('layout, options, told', [
    (without_val, {}, True), (without_val, dict(val='test'), False),
    (lambda root: write_layout('voc official', root), {}, False)])
def test_prepare_says_that_the_test_split_is_validated_on(layout, options, told, tmp_path, capsys):
    layout(tmp_path)
    with shown(): prepare_splits(tmp_path, **options)
    text = ' '.join(capsys.readouterr().out.split())
    assert ('test as validation: there is no val split, so test is used to choose the best epoch' in text) == told


def test_prepare_passes_the_bit_depth_on(tmp_path):
    write_layout('yolo images/train', tmp_path)
    used = prepare_splits(tmp_path, quiet=True, format='yolo', bit_depth=12)
    assert [a.bit_depth for _, a in used.values()] == [12, 12]
