"The detector, on odd images and with real weights."
import json

import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.detection.detector import load_detector, predict


@pytest.mark.parametrize('size', [(1, 1), (8000, 6000), (3000, 2)])
def test_detector_takes_odd_sizes(detector, size):
    found = detector(Image.new('RGB', size, 'red'), conf=0, max_detections=5)
    assert len(found) == 5 and found.boxes.min() >= 0 and (found.boxes <= torch.tensor([*size, *size])).all()
    assert found.draw().size == size


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I', 'I;16', 'F'])
def test_detector_takes_images_in_other_modes(detector, mode):
    image = Image.new('L', (40, 30)).convert(mode) if mode != 'I;16' else Image.fromarray(np.zeros((30, 40), np.uint16))
    assert detector(image, conf=0).image.shape == (3, 30, 40)


def test_detector_takes_any_img_size(weights):
    image = Image.new('RGB', (100, 60))
    assert len(load_detector(weights, 'cpu', 96)(image, conf=0, iou=1)) == 12**2 + 6**2 + 3**2
    assert len(load_detector(weights, 'cpu', (64, 96))(image, conf=0, iou=1)) == 8*12 + 4*6 + 2*3


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
