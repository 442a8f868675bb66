"`yolox_predict --labels` writes labels that are read back as what was found, and overwrites none."
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cjm_yolox_pytorch.data.cvat import number_text
from cjm_yolox_pytorch.data.label_files import WRITERS
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.files.checkpoints import save_weights

OPTIONS = dict(device='cpu', conf=0., max_detections=4)


def run(file, *inputs, out, **kwargs):
    yolox_predict(file, [str(i) for i in inputs], out=str(out), **OPTIONS | kwargs)


def contents(folder): return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('format', WRITERS)
def test_labels_are_read_back_as_what_was_found(format, file, detector, images, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images/'a.jpg').save(images/'deep/turned.jpg', exif=exif)
    Image.fromarray(np.full((50, 70), 40000, dtype=np.uint16)).save(images/'deep/16 bits.png')
    before = contents(images)
    run(file, images, out=tmp_path/'out', labels=format)
    said = ' '.join(capsys.readouterr().out.split())
    assert f'labels of 5 images for {format}, by names below {images}' in said and '5 images, 20 objects' in said
    assert contents(images) == before
    [read] = find_splits(tmp_path/'out', images=images).values()
    found = read()
    assert len(found) == 5 and not found.stops
    for i, path in enumerate(found.paths):
        d = detector(path, conf=0., max_detections=4)
        boxes, labels, _ = found.objects(i)
        assert [found.names[label] for label in labels] == [d.name(n) for n in range(len(d))]
        np.testing.assert_allclose(boxes, d.boxes.numpy(), rtol=1e-6, atol=1e-6)
        assert found.sizes[i].tolist() == [*d.image.shape[1:]]


def test_scores_and_the_model_are_kept(file, detector, images, tmp_path):
    for format in WRITERS: run(file, images/'a.jpg', out=tmp_path/format, labels=format)
    scores = detector(images/'a.jpg', conf=0., max_detections=4).scores.tolist()
    written = [float(number_text(score)) for score in scores] # Such as .8, where the float32 is .800000012
    [task] = json.loads((tmp_path/'labelstudio/tasks.json').read_text())
    [prediction] = task['predictions']
    assert prediction['model_version'] == 'nano' and [r['score'] for r in prediction['result']] == written
    assert prediction['score'] == pytest.approx(np.mean(scores))
    coco = json.loads((tmp_path/'coco/annotations/instances_default.json').read_text())
    assert [a['score'] for a in coco['annotations']] == written
    assert coco['info']['description'] == 'nano' and coco['images'][0]['file_name'] == 'a.jpg'
    for path in (tmp_path/'cvat/annotations.xml', tmp_path/'voc/Annotations/a.xml'):
        assert all(f'>{number_text(score)}<' in path.read_text() for score in scores) and 'nano' in path.read_text()


@pytest.mark.parametrize('format', WRITERS)
def test_existing_labels_are_kept_without_overwrite(format, file, images, tmp_path):
    run(file, images, out=tmp_path/'out', labels=format)
    victim = sorted(contents(tmp_path/'out'))[0]
    victim.write_text('corrected')
    for path in sorted(contents(tmp_path/'out'))[1:]: path.unlink()
    before = contents(tmp_path)
    message = f'label files that exist: {victim}. Choose another --out, or replace them with --overwrite'
    with pytest.raises(ValueError, match=message):
        run(file, images, out=tmp_path/'out', labels=format)
    assert contents(tmp_path) == before
    run(file, images, out=tmp_path/'out', labels=format, overwrite=True)
    assert victim.read_text() != 'corrected'


@pytest.mark.parametrize('options, message', [
    (dict(labels='kitti'), "labels='kitti': choose one of"),
    (dict(labels='coco', write='json'), "write='json': with --labels, only labels are written"),
    (dict(labels='coco', order='uncertainty'), "order='uncertainty': choose it or --labels"),
    (dict(overwrite=True), 'overwrite=True: it is for the label files')])
def test_bad_options_are_refused_before_anything_is_read(options, message, images, tmp_path):
    with pytest.raises(ValueError, match=message): run('no such file', images, out=tmp_path/'out', **options)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('format', ['yolo', 'voc'])
def test_images_that_would_share_a_label_file_are_named(format, images, tmp_path):
    Image.open(images/'a.jpg').save(images/'a.png')
    with pytest.raises(ValueError, match='would share a label file.*a.jpg, a.png. Rename one of each'):
        run('no such file', images, out=tmp_path/'out', labels=format)


def test_videos_and_classes_that_cannot_be_written_are_refused(weights, images, tmp_path):
    (images/'film.mp4').write_bytes(b'')
    with pytest.raises(ValueError, match='videos cannot have label files: .*film.mp4. Leave them out, or extract'):
        run('no such file', images, out=tmp_path/'out', labels='coco')
    (images/'film.mp4').unlink()
    with pytest.raises(ValueError, match='URLs and cameras have no label files: http://localhost/a.jpg. Download'):
        run('no such file', 'http://localhost/a.jpg', out=tmp_path/'out', labels='coco', network=True)
    odd = type(weights)(**vars(weights) | dict(names=['a', 'b ', 'c']))
    save_weights(odd, tmp_path/'odd.safetensors')
    with pytest.raises(ValueError, match="class names that are empty, or begin or end with blanks: 'b '"):
        run(str(tmp_path/'odd.safetensors'), images, out=tmp_path/'out', labels='coco')
    assert not (tmp_path/'out').exists()


def test_an_unreadable_image_does_not_lose_the_others(file, images, tmp_path):
    (images/'broken.jpg').write_bytes(b'not really')
    with pytest.raises(SystemExit, match='1 of the inputs could not be read'):
        run(file, images, out=tmp_path/'out', labels='cvat')
    [read] = find_splits(tmp_path/'out', images=images).values()
    assert [Path(p).name for p in read().paths] == ['a.jpg', 'b.png', 'a.jpg']


def test_numbers_stand_for_classes_without_names(weights, images, tmp_path):
    save_weights(type(weights)(**vars(weights) | dict(names=None)), tmp_path/'w.safetensors')
    run(str(tmp_path/'w.safetensors'), images, out=tmp_path/'out', labels='yolo')
    assert (tmp_path/'out/classes.txt').read_text() == '0\n1\n2\n'
    load_detector(str(tmp_path/'w.safetensors'), 'cpu')
    [read] = find_splits(tmp_path/'out', images=images).values()
    assert read().names == ['0', '1', '2'] and os.path.exists(tmp_path/'out/labels/deep/a.txt')
