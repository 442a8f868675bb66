"The detector, on odd images and with real weights."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import decisive_model
from PIL import Image

from cjm_yolox_pytorch.deploy.export import export
from cjm_yolox_pytorch.detection.detector import load_detector, predict
from cjm_yolox_pytorch.evaluation.evaluate import evaluate


@pytest.fixture(scope='module')
def decisive(weights): # Finds boxes of every class in noise, with scores that differ
    model = decisive_model(3)
    for conv in model.bbox_head.multi_level_conv_cls: torch.nn.init.normal_(conv.weight)
    return load_detector(replace(weights, state=model.state_dict()), 'cpu')


@pytest.mark.parametrize('size', [(1, 1), (8000, 6000), (3000, 2)])
def test_detector_takes_odd_sizes(detector, size):
    found = detector(Image.new('RGB', size, 'red'), conf=0, max_detections=5)
    assert len(found) == 5 and found.boxes.min() >= 0 and (found.boxes <= torch.tensor([*size, *size])).all()
    assert found.draw().size == (size if max(size) >= 200 else (200, 200))


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I', 'I;16', 'F'])
def test_detector_takes_images_in_other_modes(detector, mode):
    image = Image.new('L', (40, 30)).convert(mode) if mode != 'I;16' else Image.fromarray(np.zeros((30, 40), np.uint16))
    assert detector(image, conf=0).image.shape == (3, 30, 40)


def test_detector_takes_any_img_size(weights):
    image = Image.new('RGB', (100, 60))
    assert len(load_detector(weights, 'cpu', 96)(image, conf=0, iou=1)) == 12**2 + 6**2 + 3**2
    assert len(load_detector(weights, 'cpu', (64, 96))(image, conf=0, iou=1)) == 8*12 + 4*6 + 2*3
    assert len(load_detector(weights, 'cpu', 100)(image, conf=0, iou=1)) == 13**2 + 7**2 + 4**2 # Partial cells count


@pytest.mark.parametrize('size', [0, -5, 32.5, '64', (64, 64, 64), (64, 0)])
def test_detector_names_an_img_size_of_no_use(weights, size):
    with pytest.raises(ValueError, match='img_size=.*: give the side of a square in pixels, or height and width'):
        load_detector(weights, 'cpu', size)


def test_predict_refuses_a_network_in_training_mode(weights):
    from cjm_yolox_pytorch.model import build_model
    model = build_model('yolox_nano', 3, pretrained=False)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match='in training mode: call model.eval'): predict(model.train(), [image])
    predict(model.eval(), [image])


def test_real_weights_find_what_is_there(shared):
    detect = load_detector(shared/'weights/yolox_nano_coco.pth', 'cpu')
    truth = json.loads(next((shared/'data/coco_ccby').rglob('*.json')).read_text())
    names = {c['id']: c['name'] for c in truth['categories']}
    files = {p.name: p for p in (shared/'data/coco_ccby').rglob('*.jpg')}
    largest = {}
    for a in sorted(truth['annotations'], key=lambda a: a['area']): largest[a['image_id']] = names[a['category_id']]
    chosen = [image for image in truth['images'] if image['id'] in largest][:30]
    found = detect([files[image['file_name'].rpartition('/')[2]] for image in chosen])
    seen = [{d.name(i) for i in range(len(d))} for d in found]
    assert sum(largest[image['id']] in names for image, names in zip(chosen, seen)) >= 18
    plain, mirrored = (predict(detect.model, [d.image for d in found[:8]], detect.spec, m) for m in (False, True))
    assert sum(map(len, mirrored)) > .8*sum(map(len, plain))


@pytest.mark.parametrize('conf', [25, -.1, float('nan'), [.2, 1.5, .2]])
def test_detector_refuses_scores_that_are_not_from_0_to_1(detector, conf):
    with pytest.raises(ValueError, match='conf=.*: scores are from 0 to 1'):
        detector(Image.new('RGB', (40, 30)), conf=conf)


def test_calls_choose_scores_overlap_classes_and_number(decisive):
    detector = decisive
    photo = Image.effect_noise((64, 64), 80)
    every = detector(photo, conf=0, iou=1, max_det=1000)
    assert len(every) == 8**2 + 4**2 + 2**2
    assert 0 < len(detector(photo, conf=0, iou=.1)) < len(every)
    middle = every.scores.median().item()
    assert 0 < len(detector(photo, conf=middle, iou=1)) == (every.scores > middle).sum() < len(every)
    best = detector(photo, conf=0, iou=1, max_det=3)
    assert best.scores.tolist() == every.scores[:3].tolist()
    assert detector([photo], conf=0, iou=1, max_detections=3)[0].scores.tolist() == best.scores.tolist()
    same = np.array(['dog', 'owl']), np.array([2, 1]), torch.tensor([1, 2]), {'dog', 'owl'}, [1, 'owl'], {1: 0, 2: 0}
    for classes in ('dog,owl', ['owl', 'dog'], ('dog', 'owl'), [1, 2], range(1, 3), *same):
        some = detector(photo, conf=0, iou=1, max_det=1000, classes=classes)
        assert some.scores.tolist() == every[['dog', 'owl']].scores.tolist()
        assert 0 < len(some) < len(every)
    dogs = detector(photo, conf=0, classes=1)
    assert 0 < len(dogs['dog']) == len(dogs) < len(every)


@pytest.mark.parametrize('options, error', [
    (dict(batch=0), 'batch=0: must be at least 1'), (dict(batch='8'), "batch='8': must be a number at least 1"),
    (dict(iou=45), 'iou=45: must be from 0 to 1'), (dict(iou=float('nan')), 'iou=nan: must be'),
    (dict(max_det=0), 'max_det=0: must be at least 1'), (dict(conf='.5'), 'conf=.5: scores are from 0 to 1'),
    (dict(batch=1.5), 'batch=1.5: must be a whole number'), (dict(batch=None), 'batch=None: must be a number'),
    (dict(max_det=2.5), 'max_det=2.5: must be a whole number'), (dict(max_detections=0), 'max_detections=0: must be'),
    (dict(max_det=float('inf')), 'max_det=inf: must be a whole number'),
    (dict(max_candidates=0), 'max_candidates=0: must be at least 1'),
    (dict(max_candidates='x'), "max_candidates='x': must be a number"),
    (dict(iou=[.5]), r'iou=\[0.5\]: must be a number'),
    (dict(conf=[.1, [.2], .3]), 'scores are from 0 to 1'), (dict(classes='cat,,dog'), "^classes='cat,,dog': name 2"),
    (dict(conf=[None]*3), 'scores are from 0 to 1'), (dict(max_det='9'), "max_det='9': must be a number at least 1"),
    (dict(max_det=3, max_detections=3), 'names of the same limit'),
    *[(dict(classes=odd), 'classes=.*: give names or numbers of classes; None for all') for odd in (True, [], [1.5],
        set(), [None], np.array([True, False, False]), [['dog']])],
    (dict(classes=3), r'classes=\[3\]: they are numbered from 0 to 2'), (dict(classes=[-1]), 'numbered from 0 to 2')])
def test_options_out_of_range(detector, options, error):
    with pytest.raises(ValueError, match=error): detector(Image.new('RGB', (40, 30)), **options)


def test_misnamed_options_are_named(detector):
    with pytest.raises(TypeError, match='score_thr: detectors have no such option, but conf, iou, max_det'):
        detector(Image.new('RGB', (40, 30)), score_thr=.5)


def test_scores_may_be_a_tensor_or_an_array(decisive):
    photo = Image.effect_noise((64, 64), 80)
    every = decisive(photo, conf=0, iou=1)
    middle = every.scores.median().item()
    same = middle, torch.tensor(middle), np.float32(middle), np.full(3, middle), torch.full((3,), middle), [middle]*3
    counts = {len(decisive(photo, conf=conf, iou=1)) for conf in same}
    assert counts == {(every.scores > middle).sum().item()} and 0 < min(counts) < len(every)


@pytest.mark.parametrize('call', [load_detector, lambda w: evaluate(w, 'shapes'), export])
@pytest.mark.parametrize('weights', [None, torch.nn.Linear(1, 1), 3])
def test_weights_of_another_type_are_named(call, weights):
    message = f'{type(weights).__name__}: weights as a file, a URL, or a size'
    with pytest.raises(TypeError, match=message): call(weights)
