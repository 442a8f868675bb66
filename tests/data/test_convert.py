"`yolox_convert` keeps what a format can keep, splits by class, and leaves nothing behind when it fails."
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from layouts import LAYOUTS, write, write_image as write_drawn, write_layout
from PIL import Image
from test_label_files import datasets, write_image

from cjm_yolox_pytorch.data.annotations import build_annotations, read_annotated
from cjm_yolox_pytorch.data.convert import convert, free_names, upright, yolox_convert
from cjm_yolox_pytorch.data.label_files import common_root, label_files, without_crowds
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.data.stratify import stratify
from cjm_yolox_pytorch.evaluation.doctor import examine

FORMATS = 'yolo', 'coco', 'voc'
COMMAND = os.path.join(os.path.dirname(sys.executable), 'yolox_convert')


def read_all(data, **kwargs):
    "By split; one without a name is for training"
    readers = find_splits(data, **kwargs)
    if {'train', 'val', 'trainval'} <= readers.keys(): readers.pop('trainval')
    return {'train' if split in ('all', 'boxes') else split: read() for split, read in readers.items()}


def described(a):
    "By image, below the folder of the split: its size, and names and corners of its objects, in order"
    a, root = without_crowds(a), common_root(a.paths)
    images = {}
    for i, path in enumerate(a.paths):
        boxes, labels, _ = a.objects(i)
        images[os.path.relpath(path, root)] = a.sizes[i].tolist(), [a.names[n] for n in labels], boxes
    return images


def assert_same_data(found, expected):
    assert found.keys() == expected.keys()
    for split in expected:
        mine, theirs = described(found[split]), described(expected[split])
        assert mine.keys() == theirs.keys()
        for name, (size, names, boxes) in theirs.items():
            assert mine[name][:2] == (size, names)
            np.testing.assert_allclose(mine[name][2], boxes, rtol=1e-6, atol=1e-6)


def snapshot(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob('*')) if p.is_file()}


def chain_of(data, root, formats, **kwargs):
    "Convert from one format to the next; yields the folders"
    for n, to in enumerate(formats):
        out = root/f'{n} {to}'
        yolox_convert(str(data), to, str(out), **kwargs if n == 0 else {})
        yield out
        data = out


@settings(max_examples=15)
@given(data=datasets(), formats=st.permutations(FORMATS), extra=st.booleans())
def test_there_and_back_through_all_formats(data, formats, extra):
    root = Path(tempfile.mkdtemp())
    try:
        names, images = data
        for path, size, mode, _ in images: write_image(root/'photos'/path, *size, mode)
        rows = [(i, n, *box) for i, (*_, found) in enumerate(images) for n, box, _ in found]
        sizes = [size[::-1] for _, size, *_ in images]
        a = build_annotations('drawn', names, [str(root/'photos'/p) for p, *_ in images], sizes, rows)
        splits = dict(train=a, val=a.take([0])) if extra else dict(train=a)
        folders = {path: common_root(a.paths) for path in a.paths.tolist()}
        convert(splits, formats[0], root/'first', folders)
        *_, last = chain_of(root/'first', root, [*formats[1:], formats[0]])
        assert_same_data(read_all(last), read_all(root/'first'))
        first = without_crowds(read_all(root/'first')['train'])
        kept = Counter((first.names[n], *map(float, box)) for n, box in zip(first.labels, first.boxes.round(3)))
        assert kept == Counter((a.names[n], *map(float, box)) for n, box in zip(a.labels, a.boxes.round(3)))
    finally: shutil.rmtree(root)


@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('to', FORMATS)
def test_every_layout_converts_and_is_ready_if_it_was(name, to, tmp_path):
    write_layout(name, tmp_path/'data')
    before = snapshot(tmp_path/'data')
    yolox_convert(str(tmp_path/'data'), to, str(tmp_path/'out'))
    assert snapshot(tmp_path/'data') == before and sorted(os.listdir(tmp_path)) == ['data', 'out']
    source = read_all(tmp_path/'data')
    assert_same_data(read_all(tmp_path/'out'), source)
    assert examine(tmp_path/'out').ready == examine(tmp_path/'data').ready


@pytest.mark.slow
@pytest.mark.parametrize('name', ['bccd', 'coco_ccby'])
def test_real_data_comes_back(name, shared, tmp_path):
    source = shared/'data'/name
    *_, last = chain_of(source, tmp_path, ['coco', 'yolo', 'voc', 'coco'], link='hard')
    assert_same_data(read_all(last), read_all(source))
    was, now = examine(source), examine(last)
    assert was.ready == now.ready
    crowds = sum(int(a.crowd.sum()) for a in read_all(source).values())
    kept = read_all(tmp_path/'0 coco')
    assert sum(int(a.crowd.sum()) for a in kept.values()) == crowds
    for split, a in read_all(source).items():
        np.testing.assert_array_equal(a.areas, kept[split].areas)
        assert [a.names[n] for n in a.labels] == [kept[split].names[n] for n in kept[split].labels]


def test_new_splits_of_real_data_have_every_class(shared, tmp_path):
    yolox_convert(str(shared/'data/bccd'), 'yolo', str(tmp_path/'out'), split='.8,.1,.1', link='soft')
    splits = read_all(tmp_path/'out')
    assert {s: len(a) for s, a in splits.items()} == dict(train=291, val=36, test=37)
    shares = np.array([a.counts for a in splits.values()])
    assert (shares/shares.sum(0) > .07).all() and shares.sum() == 4886
    assert (tmp_path/'out/images/val').is_dir() and next((tmp_path/'out/images/val').iterdir()).is_symlink()


# ---- Splits

@settings(max_examples=40)
@given(st.data())
def test_stratified_splits_are_a_partition_with_the_right_shares(data):
    classes, count = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 80))
    has = np.random.default_rng(data.draw(st.integers(0, 99))).random((count, classes)) < data.draw(st.floats(0, 1))
    rows = [(i, n, 0, 0, 5, 5) for i, n in np.argwhere(has)]
    a = build_annotations('x', [*'abcdef'[:classes]], [f'{i}.png' for i in range(count)], [(9, 9)]*count, rows)
    shares = data.draw(st.sampled_from([[.8, .2], [.8, .1, .1], [.5, .25, .25]]))
    split = stratify(a, shares, seed=data.draw(st.integers(0, 9)))
    assert len(split) == count and {*split} <= {*range(len(shares))}
    single = has.sum(1) == 1 # With one class an image, shares are met to within an image a class
    counts = np.bincount(split, minlength=len(shares))
    if single.all(): assert np.abs(counts - count*np.array(shares)).max() <= 1 + classes


def test_a_rare_class_is_in_every_split_if_it_can_be():
    "Where images have one class each"
    for rare in range(1, 9):
        labels = [0]*60 + [1]*rare
        a = build_annotations('x', ['a', 'b'], [f'{i}.png' for i in range(len(labels))], [(9, 9)]*len(labels),
                              [(i, label, 0, 0, 5, 5) for i, label in enumerate(labels)])
        for seed in range(5):
            split = stratify(a, [.8, .1, .1], seed)[60:]
            assert len({*split}) == min(rare, 3) and 0 in split


def test_copies_stay_together_and_seeds_differ(tmp_path):
    for n in range(12):
        Image.fromarray(np.full((8, 8), n//3*40, dtype=np.uint8)).save(tmp_path/f'{n}.png')
        write(tmp_path/f'{n}.txt', f'{n % 2} .5 .5 .5 .5\n')
    write(tmp_path/'classes.txt', 'ant\nbee')
    found = []
    for seed in range(6):
        out = tmp_path.parent/f'{tmp_path.name} {seed}'
        yolox_convert(str(tmp_path), 'coco', str(out), split='.5,.5', seed=seed)
        parts = {split: {int(Path(p).stem)//3 for p in a.paths} for split, a in read_all(out).items()}
        assert not parts['train'] & parts['val'] and len(parts['train'] | parts['val']) == 4
        found.append(sorted(parts['train']))
    assert len({*map(str, found)}) > 1


def test_copies_that_roboflow_made_of_a_photo_stay_together(tmp_path):
    for n in range(30):
        name = f'photo{n//3}_png.rf.{n:032x}'
        Image.fromarray(np.full((8, 8), n*8, dtype=np.uint8)).save(tmp_path/f'{name}.png')
        write(tmp_path/f'{name}.txt', f'{n % 2} .5 .5 .5 .5\n')
    write(tmp_path/'classes.txt', 'ant\nbee')
    for seed in range(4):
        out = tmp_path.parent/f'{tmp_path.name} {seed}'
        yolox_convert(str(tmp_path), 'coco', str(out), split='.6,.2,.2', seed=seed)
        found = {split: [Path(p).name.partition('.')[0] for p in a.paths] for split, a in read_all(out).items()}
        assert sorted(map(len, found.values())) == [6, 6, 18]
        assert sum(len({*photos}) for photos in found.values()) == 10
    for n in range(6, 30): (tmp_path/f'photo{n//3}_png.rf.{n:032x}.png').unlink()
    for n in range(6, 30): (tmp_path/f'photo{n//3}_png.rf.{n:032x}.txt').unlink()
    with pytest.raises(ValueError, match='6 images of 2 different photos, too few for 3 splits'):
        yolox_convert(str(tmp_path), 'coco', str(tmp_path.parent/'few'), split='.6,.2,.2')


def test_images_of_the_same_name_in_two_splits_are_kept_apart(tmp_path):
    for split in ('train', 'val'):
        for name in 'ab': write_drawn(tmp_path/'data/images'/split, name)
        for name in 'ab': write(tmp_path/f'data/labels/{split}/{name}.txt', '0 .5 .5 .5 .5\n' if split == 'val' else '')
    Image.new('RGB', (80, 60)).save(tmp_path/'data/images/val/a.png')
    write(tmp_path/'data/classes.txt', 'ant')
    yolox_convert(str(tmp_path/'data'), 'voc', str(tmp_path/'voc'))
    assert (tmp_path/'voc/JPEGImages/train/a.png').is_file() and (tmp_path/'voc/Annotations/val/a.xml').is_file()
    assert_same_data(read_all(tmp_path/'voc'), read_all(tmp_path/'data'))
    yolox_convert(str(tmp_path/'data'), 'yolo', str(tmp_path/'yolo'), split='.5,.5')
    names = [os.path.basename(p) for a in read_all(tmp_path/'yolo').values() for p in a.paths]
    assert len(names) == 4


# ---- What a format cannot hold

@pytest.mark.parametrize('turn', range(5, 9))
def test_boxes_drawn_on_a_lying_image_are_turned(turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[5:15, 10:40] = 255
    Image.fromarray(pixels).save(tmp_path/'a.png', exif=exif)
    lying = build_annotations('a', ['ant'], [str(tmp_path/'a.png')], [(40, 80)], [(0, 0, 10, 5, 40, 15)])
    [x1, y1, x2, y2] = upright('a', lying).boxes[0].astype(int)
    shown = read_annotated(upright('a', lying), 0).numpy()
    assert shown.shape == (3, 80, 40) and (shown[:, y1:y2, x1:x2] == 255).all() and (shown == 255).sum() == 3*300
    odd = build_annotations('a', ['ant'], [str(tmp_path/'a.png')], [(41, 80)], [(0, 0, 10, 5, 40, 15)])
    message = 'another size than was annotated: .*a.png: 40x80, but its boxes are for 80x41'
    with pytest.raises(ValueError, match=message):
        upright('a', odd)


def test_crowds_are_left_out_and_said(shared, tmp_path, capsys):
    yolox_convert(str(shared/'data/coco_ccby'), 'yolo', str(tmp_path/'out'))
    said = capsys.readouterr().out
    assert '6 crowd regions left out, since yolo does not know them' in said and 'outlines reduced to boxes' in said
    assert len(read_all(tmp_path/'out')['train'].labels) == 399


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(exclude_characters='\0/') | st.sampled_from('aA./ \\:'), min_size=1, max_size=9)))
def test_free_names_can_be_written_and_stay(names):
    names = [f'{n.strip("/")}.png' for n in names]
    found = free_names(names)
    assert len(found) == len(names) and free_names(found) == found
    a = build_annotations('x', ['ant'], found, [(9, 9)]*len(found), [])
    for format in FORMATS: label_files(format, dict(all=a))


def test_missing_labels_stop_a_conversion_unless_allowed(tmp_path):
    for name in 'abc': write_drawn(tmp_path/'data', name)
    write(tmp_path/'data/a.txt', '0 .5 .5 .5 .5')
    write(tmp_path/'data/classes.txt', 'ant')
    with pytest.raises(ValueError, match='2 of 3 images have no label file.* To convert anyway, pass --allow-missing'):
        yolox_convert(str(tmp_path/'data'), 'coco', str(tmp_path/'out'))
    assert os.listdir(tmp_path) == ['data']
    yolox_convert(str(tmp_path/'data'), 'coco', str(tmp_path/'out'), allow_missing=True)
    assert len(read_all(tmp_path/'out')['train']) == 3


# ---- Nothing is overwritten, and nothing is left

def test_nothing_is_left_when_an_image_cannot_be_copied(tmp_path, monkeypatch):
    write_layout('yolo images/train', tmp_path/'data')
    def full(source, target): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('shutil.copyfile', full)
    with pytest.raises(OSError, match='No space left'): yolox_convert(str(tmp_path/'data'), 'coco', str(tmp_path/'out'))
    assert os.listdir(tmp_path) == ['data']


@pytest.mark.parametrize('options, message', [
    (dict(to='kitti'), "to='kitti': choose one of"), (dict(), 'to=None: choose one of'),
    (dict(to='coco', out=None), 'out is missing: name a folder with --out'),
    (dict(to='coco', link='sym'), "link='sym': choose hard or soft"),
    (dict(to='coco', split='1'), "split='1': write the"),
    (dict(to='coco', split='.5,.5,0'), "split='.5,.5,0'"), (dict(to='coco', split='.9,nan'), "split='.9,nan'"),
    (dict(to='coco', split='.8,.1,.1'), '2 images, too few for 3 splits'),
    (dict(to='coco', format='kitti'), "format='kitti': choose one of"),
    (dict(to='coco', out='{data}/out'), 'is in the folder of the data'),
    (dict(to='coco', out='{data}'), 'is in the folder'),
    (dict(to='coco', out='{full}'), 'full exists: choose another'),
    (dict(to='coco', images='nowhere'), 'no such folder')])
def test_bad_options(options, message, tmp_path):
    data, full = tmp_path/'data', tmp_path/'full'
    for name in 'ab': write_drawn(data, name)
    for name in 'ab': write(data/f'{name}.txt', '0 .5 .5 .5 .5')
    write(data/'classes.txt', 'ant')
    write(full/'mine.txt', 'mine')
    before = snapshot(tmp_path)
    options = dict(out=str(tmp_path/'out')) | options
    if options['out']: options['out'] = options['out'].format(data=data, full=full)
    with pytest.raises((ValueError, OSError), match=message): yolox_convert(str(data), **options)
    assert snapshot(tmp_path) == before and sorted(os.listdir(tmp_path)) == ['data', 'full']


def test_an_empty_folder_may_be_filled_and_links_are_links(tmp_path):
    write_layout('coco one file', tmp_path/'data')
    (tmp_path/'out').mkdir()
    yolox_convert(str(tmp_path/'data'), 'yolo', str(tmp_path/'out'), link='hard')
    [image] = (tmp_path/'out/images').glob('a.*')
    assert image.stat().st_nlink == 2 and not image.is_symlink()
    (tmp_path/'left.partial').mkdir()
    with pytest.raises(OSError, match='left.partial is left from an earlier run: remove it'):
        yolox_convert(str(tmp_path/'data'), 'yolo', str(tmp_path/'left'))


def test_the_current_folder_may_be_filled_and_stays(tmp_path, monkeypatch):
    write_layout('coco one file', tmp_path/'data')
    (tmp_path/'out').mkdir()
    monkeypatch.chdir(tmp_path/'out')
    for out in ('.', '../beside/'):
        yolox_convert(str(tmp_path/'data'), 'coco', out)
        assert sorted(p.name for p in Path(out).iterdir()) == ['annotations', 'images']
    assert os.path.samefile('.', tmp_path/'out') and sorted(os.listdir(tmp_path)) == ['beside', 'data', 'out']


def test_a_failed_hard_link_says_what_to_do(tmp_path, monkeypatch):
    write_layout('coco one file', tmp_path/'data')
    def link(*_): raise OSError(18, 'Invalid cross-device link')
    monkeypatch.setattr(os, 'link', link)
    with pytest.raises(OSError, match='no hard link: Invalid cross-device link. Choose --link soft, or copies'):
        yolox_convert(str(tmp_path/'data'), 'yolo', str(tmp_path/'new/deep/out'), link='hard')
    assert sorted(os.listdir(tmp_path)) == ['data']


def test_an_image_in_two_splits_is_kept_once_and_said(tmp_path, capsys):
    for name in 'abcd': write_drawn(tmp_path/'images', name)
    labels = {f'labels/{name}.txt': '0 .5 .5 .4 .4' for name in 'abcd'}
    lists = dict(train='images/a.png\nimages/b.png\nimages/c.png', val='images/a.png\nimages/d.png')
    config = 'train: train.txt\nval: val.txt\nnames: [ant]'
    for place, text in {**labels, 'data.yaml': config, **{f'{s}.txt': v for s, v in lists.items()}}.items():
        (tmp_path/place).parent.mkdir(exist_ok=True)
        (tmp_path/place).write_text(text)
    yolox_convert(str(tmp_path), 'coco', str(tmp_path.with_name(tmp_path.name + ' out')), '.5,.5')
    assert '1 image of several splits, kept once with the labels of the first' in capsys.readouterr().out


def test_help_fits_a_terminal_and_errors_are_one_line(tmp_path):
    if not os.path.exists(COMMAND): pytest.skip('the command is not installed')
    shown = subprocess.run([COMMAND, '--help'], capture_output=True, text=True, env=os.environ | dict(COLUMNS='80'))
    assert shown.returncode == 0 and max(map(len, shown.stdout.splitlines())) <= 80
    words = [COMMAND, str(tmp_path), '--to', 'coco', '--out', str(tmp_path/'x')]
    failed = subprocess.run(words, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.count('\n') == 1
    assert failed.stderr.startswith('yolox_convert: error: ')
