"Laws of merging what was found in tiles, and the options of the commands."
import json

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from networks import decisive_model
from PIL import Image

from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.detection.detector import Detector
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.detection.tiled import drop_cut_ones, find_in_tiles, merge_tiles, place, suppress
from cjm_yolox_pytorch.files.checkpoints import Weights
from cjm_yolox_pytorch.files.tiles import cut_out, tile_grid

HW, TILE, OVERLAP = (300, 400), 150, .3


@st.composite
def founds(draw, classes=2):
    "Detections of all tiles: some within, many at their borders, with scores that repeat"
    rng, found = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), []
    for x1, y1, x2, y2 in tile_grid(HW, TILE, OVERLAP).tolist():
        n = int(rng.integers(0, 6))
        corners = rng.uniform(-30, 1, (n, 2)).clip(0) + rng.uniform(0, [x2 - x1 - 20, y2 - y1 - 20], (n, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 150, (n, 2))], 1)
        boxes = torch.from_numpy(boxes.clip(0, [x2 - x1, y2 - y1]*2)).float()
        scores = torch.from_numpy(rng.integers(1, 5, n)/5).float()
        found.append(Detections(boxes, scores, torch.from_numpy(rng.integers(0, classes, n))))
    return found


def rows(d): return sorted(zip(d.boxes.tolist(), d.scores.tolist(), d.labels.tolist()))


@given(founds(), st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_boxes_does_not_matter(found, random, agnostic):
    p = drop_cut_ones(place(found, tiles := tile_grid(HW, TILE, OVERLAP)), tiles, HW, TILE, OVERLAP)
    order = random.sample(range(len(p.boxes)), len(p.boxes))
    results = [suppress(q, HW, .65, agnostic) for q in (p, p.take(np.array(order, dtype=int)))]
    first, second = (sorted(zip(q.boxes.tolist(), q.scores.tolist(), q.labels.tolist())) for q in results)
    assert first == second


@given(founds())
def test_cut_boxes_never_win_over_whole_ones(found):
    "Whatever cut boxes are there, with whatever scores, the whole boxes that are kept are the same"
    tiles = tile_grid(HW, TILE, OVERLAP)
    p = drop_cut_ones(place(found, tiles), tiles, HW, TILE, OVERLAP)
    kept, without = suppress(p, HW, .65, False), suppress(p.take(~p.cut), HW, .65, False)
    assert kept.boxes[~kept.cut].tolist() == without.boxes.tolist()


@given(founds())
def test_merging_keeps_boxes_as_they_are_and_apart(found):
    merged, tiles = merge_tiles(found, HW, TILE, OVERLAP), tile_grid(HW, TILE, OVERLAP)
    everything = {(*np.float32(b).tolist(), l) for b, l in zip(place(found, tiles).boxes, place(found, tiles).labels)}
    assert {(*b, l) for b, l in zip(merged.boxes.tolist(), merged.labels.tolist())} <= everything
    assert merged.scores.tolist() == sorted(merged.scores.tolist(), reverse=True)
    for label in (0, 1):
        boxes = merged.boxes[merged.labels == label].double()
        from torchvision.ops import box_iou
        assert (box_iou(boxes, boxes).fill_diagonal_(0) < .6501).all()


@given(founds())
def test_merging_twice_changes_nothing(found):
    tiles = tile_grid(HW, TILE, OVERLAP)
    once = suppress(drop_cut_ones(place(found, tiles), tiles, HW, TILE, OVERLAP), HW, .65, False)
    assert suppress(once, HW, .65, False).boxes.tolist() == once.boxes.tolist()


def blobs(images):
    "A detector that finds white rectangles, which do not touch"
    import cv2
    found = []
    for image in images:
        x, y, w, h, area = cv2.connectedComponentsWithStats((image[0] > 0).numpy().astype(np.uint8))[2][1:].T
        boxes = torch.from_numpy(np.stack([x, y, x + w, y + h], 1)).float()
        found.append(Detections(boxes, torch.from_numpy(area/1e6).float(), torch.zeros(len(boxes), dtype=torch.int64)))
    return found


@given(st.lists(st.tuples(st.integers(0, 390), st.integers(0, 290), st.integers(2, 300), st.integers(2, 300)),
                max_size=12), st.integers(32, 450), st.floats(0, .8), st.integers(1, 9))
def test_a_perfect_detector_stays_perfect(candidates, tile, overlap, batch):
    "Each object once, whole, however large it is and wherever it is cut"
    scene, boxes = torch.zeros(3, *HW, dtype=torch.uint8), []
    for x, y, w, h in candidates:
        box = [x, y, min(x + w, HW[1]), min(y + h, HW[0])]
        near = (box[0] < b[2] + 5 and box[2] > b[0] - 5 and box[1] < b[3] + 5 and box[3] > b[1] - 5 for b in boxes)
        if any(near): continue
        boxes.append(box)
        scene[:, box[1]:box[3], box[0]:box[2]] = 255
    found, = find_in_tiles(blobs, [scene], tile, overlap, batch)
    assert sorted(found.boxes.tolist()) == sorted(boxes)


@pytest.fixture(scope='module')
def sure():
    "A detector that finds several things everywhere"
    model = decisive_model(3)
    weights = Weights(model.state_dict(), 'yolox_nano', 3, (0., 0., 0.), (1., 1., 1.), names=['a', 'b', 'c'], size=64)
    return Detector(weights, 'cpu')


def noise(*hw): return torch.from_numpy(np.random.default_rng(sum(hw)).integers(0, 256, (3, *hw), dtype=np.uint8))


@pytest.mark.parametrize('mirrored', [False, True])
def test_images_that_fit_into_a_tile_are_as_without_tiles(sure, mirrored):
    images = [noise(60, 90), noise(100, 100), noise(33, 20)]
    plain, tiled = (sure(images, conf=.3, mirrored=mirrored, **o) for o in ({}, dict(tile=100, overlap=.5)))
    for a, b in zip(plain, tiled):
        assert len(a) > 0 and a.boxes.equal(b.boxes) and a.scores.equal(b.scores) and a.labels.equal(b.labels)


def test_tiles_are_letterboxed_like_images(sure):
    "Also small ones, which are enlarged; what is found in each of them alone is what is merged"
    image = noise(70, 130)
    tiles = cut_out(image, tile_grid((70, 130), 40, .25))
    alone = [sure(part, conf=.3) for part in tiles]
    want = merge_tiles(alone, (70, 130), 40, .25)
    found = sure(image, conf=.3, tile=40, overlap=.25, batch=1)
    assert len(found) > 5 and found.boxes.equal(want.boxes) and found.scores.equal(want.scores)
    together = sure([image, noise(50, 50)], conf=.3, tile=40, overlap=.25, batch=5)
    torch.testing.assert_close(together[0].scores.sum(), found.scores.sum(), rtol=1e-3, atol=1e-3)


def test_options_reach_the_merging(sure):
    image = noise(200, 200)
    few = sure(image, conf=.3, tile=64, max_detections=7)
    assert len(few) == 7 and few.scores.equal(sure(image, conf=.3, tile=64).scores[:7])
    assert len(sure(image, conf=.3, tile=64, class_agnostic=True)) <= len(sure(image, conf=.3, tile=64))
    assert {*sure(image, conf=.3, tile=64, classes='b').labels.tolist()} <= {1}


def test_pictures_far_larger_than_nms_clamps_to():
    "`nms` moves classes apart within 8,192 pixels; a picture may be larger"
    part = Detections(torch.tensor([[3., 3., 9., 9.]]), torch.tensor([.5]), torch.tensor([1]))
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    tiles = tile_grid((100, 30000), 100, 0)
    found = [part if x1 > 20000 else nothing for x1, *_ in tiles.tolist()]
    assert len(merge_tiles(found, (100, 30000), 100, 0)) == sum(x1 > 20000 for x1, *_ in tiles.tolist())


@pytest.mark.parametrize('options, what', [
    (dict(overlap=.3), r'overlap=0.3 is that of tiles: give tile \(--tile\)'),
    (dict(tile=16), 'tile=16: .*at least 32'), (dict(tile=0), 'tile=0: .*at least 32'),
    (dict(tile=64, overlap=1.), 'overlap=1.0: .*less than 1'), (dict(tile=64, overlap=-.1), 'overlap=-0.1: ')])
def test_predict_refuses_what_cannot_be(file, images, tmp_path, options, what):
    with pytest.raises(ValueError, match=what): yolox_predict(file, [images], out=tmp_path/'out', **options)
    assert not (tmp_path/'out').exists()


def test_predict_with_tiles(file, tmp_path, capsys):
    Image.fromarray(noise(120, 200).permute(1, 2, 0).numpy()).save(tmp_path/'a.png')
    yolox_predict(file, [tmp_path/'a.png'], out=tmp_path/'out', tile=64, conf=1e-6, max_detections=50, write='json')
    coco = json.loads((tmp_path/'out/detections.json').read_text())
    right = max(x + w for x, _, w, _ in (a['bbox'] for a in coco['annotations']))
    assert len(coco['annotations']) == 50 and 64 < right <= 200


def test_weights_of_tiles_say_so(weights, tmp_path, images, capsys):
    from dataclasses import replace

    from cjm_yolox_pytorch.files.checkpoints import save_weights
    trained = replace(weights, notes=dict(recipe=dict(tile=64, overlap=.3)))
    save_weights(trained, tmp_path/'w.safetensors')
    run = dict(out=tmp_path/'out', write='json', device='cpu')
    yolox_predict(tmp_path/'w.safetensors', [images], **run)
    assert 'use --tile 64 --overlap 0.3' in ' '.join(capsys.readouterr().out.split())
    yolox_predict(tmp_path/'w.safetensors', [images], tile=64, overlap=.3, **run)
    assert 'use --tile' not in capsys.readouterr().out
