"Near duplicates between splits are found, and little else is taken for one."
import io
from dataclasses import replace

import numpy as np
import pytest
from layouts import write_layout
from PIL import Image

from cjm_yolox_pytorch.data.annotations import build_annotations
from cjm_yolox_pytorch.data.shapes import draw_shapes
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.evaluation.dataset_figure import _fault_cells
from cjm_yolox_pytorch.evaluation.doctor import examine, report_lines
from cjm_yolox_pytorch.evaluation.image_checks import look_at_images
from cjm_yolox_pytorch.evaluation.near_duplicates import MAX_BITS, near_duplicates, nearest_hashes, perceptual_hash


def drawn(seed, size=160): return draw_shapes(np.random.default_rng(seed), size)[0]


def as_jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'jpeg', quality=40)
    return np.asarray(Image.open(file))


def video(frames):
    "A shape moves over a fixed background"
    background = drawn(99)
    for n in range(frames):
        frame = background.copy()
        frame[60:90, 2*n:2*n + 30] = 255
        yield frame


def write_split(folder, images):
    folder.mkdir(parents=True)
    paths = [folder/f'{n:03}.png' for n in range(len(images))]
    for path, image in zip(paths, images): Image.fromarray(image).save(path)
    rows = [(n, 0, 5, 5, 50, 50) for n in range(len(images))]
    return build_annotations('here', ['ant'], paths, [image.shape[:2] for image in images], rows)


def near(faults): return [f for f in faults if f.kind == 'near duplicate']


CHANGES = {'compressed': as_jpeg, 'darker': lambda image: image//2, 'cropped a little': lambda image: image[1:-1, 1:-1],
    'half the size': lambda image: image[::2, ::2]}


@pytest.mark.parametrize('change', CHANGES)
def test_hash_survives(change):
    "Mostly: drawings have more sharp edges than photos"
    hashes = [[perceptual_hash(i.transpose(2, 0, 1)) for i in (drawn(n), CHANGES[change](drawn(n)))] for n in range(20)]
    bits = [np.unpackbits(a ^ b).sum() for a, b in hashes]
    assert np.mean(np.array(bits) <= MAX_BITS) >= .9, sorted(bits)


def test_nearest_hashes_in_chunks_are_those_of_all():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (n, 32), dtype=np.uint8) for n in (23, 41))
    every = np.unpackbits(a[:, None] ^ b[None], axis=2).sum(2)
    for chunk in (1, 7, 23, 99):
        bits, index = nearest_hashes(a, b, chunk)
        assert np.array_equal(bits, every.min(1)) and np.array_equal(every[range(23), index], bits)
    assert near_duplicates({}, {'a': a[0]}) == near_duplicates({'a': a[0]}, {}) == []
    assert near_duplicates({'a': a[0]}, {'b': a[1], 'c': a[0]}) == [('a', 'c')]


def test_near_duplicates_are_named_with_their_like_and_copies_only_once(tmp_path):
    others = [drawn(n) for n in range(6)]
    train = write_split(tmp_path/'train', others)
    val = write_split(tmp_path/'val', [as_jpeg(others[2]), others[4], drawn(77)])
    faults = look_at_images(dict(train=train, val=val), used=['train', 'val'])
    fault, = near(faults)
    assert (fault.where, fault.other, fault.stops) == (val.paths[0], train.paths[2], False)
    assert fault.text == 'val/000.png in val looks like train/002.png in train'
    assert [f.kind for f in faults if f is not fault] == ['copy in another split']
    titles = [(i, title) for _, i, _, title in _fault_cells(dict(train=train, val=val), [fault], 12)]
    assert titles == [(0, 'near duplicate'), (2, 'of this image')]


def test_a_video_that_is_split_at_random_is_noticed_also_if_training_splits_it(tmp_path):
    every = write_split(tmp_path/'all', [*video(40)])
    order = np.random.default_rng(0).permutation(40)
    apart = dict(train=every.take(order[8:]), val=every.take(order[:8]))
    assert len(near(look_at_images(apart, used=['train', 'val']))) == 8
    found = near(look_at_images(dict(all=every), used=['all']))
    assert len(found) == 4 and 'in the held-out tenth looks like' in found[0].text


def test_images_without_contrast_do_not_resemble_each_other(tmp_path):
    flat = [np.full((60, 80, 3), 90 + n, dtype=np.uint8) for n in range(4)]
    splits = dict(train=write_split(tmp_path/'train', flat[:2]), val=write_split(tmp_path/'val', flat[2:]))
    assert not near(look_at_images(splits, used=['train', 'val']))


def test_drawings_are_not_taken_for_each_other(tmp_path):
    hashes = {n: perceptual_hash(drawn([5, n]).transpose(2, 0, 1)) for n in range(150)}
    assert not near_duplicates({n: hashes[n] for n in range(30)}, {n: hashes[n] for n in range(30, 150)})


@pytest.mark.slow
def test_near_duplicates_of_photos(shared):
    "BCCD has one field of view twice, once in train and once in val; COCO's photos are all different"
    splits = {name: read() for name, read in find_splits(shared/'data/bccd').items() if name != 'trainval'}
    splits = {name: splits[name] for name in ('train', 'val', 'test')}
    assert [f.text for f in near(look_at_images(splits, used=['train', 'val']))] == [
        'JPEGImages/BloodImage_00037.jpg in val looks like JPEGImages/BloodImage_00038.jpg in train']
    coco = find_splits(shared/'data/coco_ccby')['all']()
    halves = dict(train=coco.take(range(20)), val=coco.take(range(20, 45)))
    assert not near(look_at_images(halves, used=['train', 'val']))


# What the doctor says about images

def test_images_without_objects_are_worth_a_look_once(tmp_path):
    "Not where the reader said already that labels are missing"
    write_layout('yolo images/train', tmp_path)
    report = examine(tmp_path)
    text = '\n'.join(report_lines(report))
    assert 'image without objects: learned as background; label those that show objects\n    train: b.png' in text
    assert text.index('worth a look') < text.index('image without objects')
    (tmp_path/'labels/train/b.txt').unlink()
    report = examine(tmp_path)
    assert 'image without objects' in {f.kind for f in report.faults} # For the pictures
    text = '\n'.join(report_lines(report))
    assert '1 of 2 images have no label file' in text and 'image without objects' not in text
    lines = [*report_lines(examine(tmp_path, allow_missing=True))]
    assert lines.index('worth a look') < [n for n, line in enumerate(lines) if 'missing data' in line][0]


def test_images_in_no_split_are_told_by_folder(tmp_path):
    write_layout('yolo images/train', tmp_path)
    for name in ('validated/x.png', 'validated/y.png', 'masks/a.tif', 'runs/1/z.png'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(1)).save(tmp_path/name)
    (tmp_path/'runs/1/state.pt').touch()
    (tmp_path/'runs/1/metrics.csv').touch()
    found = [f.text for f in examine(tmp_path).faults if f.kind == 'images in no split']
    assert found == [f'{tmp_path}/validated: 2 images, such as x.png']


def test_column_heads_and_class_names_stay_apart(tmp_path):
    write_layout('yolo images/train', tmp_path)
    report = examine(tmp_path)
    names = ['a class whose name is rather long, one', 'a class whose name is rather long, two']
    a = replace(report.splits['train'], names=names)
    for splits in (['train', 'the_validation_split_of_may'], [f'fold_number_{n}' for n in range(9)]):
        lines = [*report_lines(replace(report, splits=dict.fromkeys(splits, a), faults=[]))]
        assert all(split in '\n'.join(lines) for split in splits) and max(map(len, lines[1:])) <= 80
        assert len({line.split('  ')[1] for line in lines if line.startswith(('  0 ', '  1 '))}) == 2
