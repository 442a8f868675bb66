"Objects as training tiles have them."
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from cjm_yolox_pytorch.data.annotations import Annotations, read_annotated
from cjm_yolox_pytorch.data.batches import DetectionDataset
from cjm_yolox_pytorch.data.tiling import tile_annotations, tile_objects
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.detection.tiled import merge_tiles
from cjm_yolox_pytorch.files.tiles import tile_grid

TILINGS = dict(tile=st.integers(32, 300), overlap=st.floats(0, .8))


def split(path, sizes, boxes, crowd=None):
    counts, boxes = [len(b) for b in boxes], np.concatenate(boxes).astype(np.float32).reshape(-1, 4)
    T = len(boxes)
    return Annotations(['a', 'b'], np.array([f'{path}{i}.png' for i in range(len(sizes))]), np.array(sizes),
                       np.append(0, np.cumsum(counts)), boxes, np.arange(T) % 2,
                       np.zeros(T, dtype=bool) if crowd is None else crowd, (boxes[:, 2:] - boxes[:, :2]).prod(1))


@st.composite
def pictures(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hw, n = rng.integers(20, 700, 2), int(rng.integers(0, 12))
    low = rng.uniform(-10, hw[::-1] - 2, (n, 2))
    high = low + rng.uniform(12, 300, (n, 2))
    return tuple(hw.tolist()), np.concatenate([low, high], 1).astype(np.float32)


@given(picture=pictures(), **TILINGS)
def test_every_object_is_learned_somewhere_and_always_whole(picture, tile, overlap):
    hw, boxes = picture
    n, t, inside, learned = tile_objects(boxes, hw, tile, overlap)
    tiles = tile_grid(hw, tile, overlap)
    assert {*n[learned].tolist()} == {*range(len(boxes))}
    moved = inside + tiles[t][:, [0, 1, 0, 1]]
    np.testing.assert_allclose(moved[learned], boxes[n[learned]].clip(0, [*hw[::-1]]*2), atol=1e-3)
    coarse = {*n[learned & (t == len(tiles) - 1)].tolist()} if len(tiles) > 1 else set()
    assert coarse.isdisjoint(n[learned & (t < len(tiles) - 1)].tolist())


@given(picture=pictures(), **TILINGS)
def test_boxes_lie_in_their_tiles_and_where_they_were(picture, tile, overlap):
    hw, boxes = picture
    n, t, inside, learned = tile_objects(boxes, hw, tile, overlap)
    tiles = tile_grid(hw, tile, overlap)
    sides = (tiles[:, 2:] - tiles[:, :2])[t]
    assert (inside >= 0).all() and (inside[:, 2:] <= sides).all() and (inside[:, 2:] > inside[:, :2]).all()
    moved, clipped = inside + tiles[t][:, [0, 1, 0, 1]], boxes.clip(0, [*hw[::-1]]*2)[n]
    want = np.concatenate([np.maximum(clipped[:, :2], tiles[t][:, :2]), np.minimum(clipped[:, 2:], tiles[t][:, 2:])], 1)
    np.testing.assert_allclose(moved, want, atol=1e-3)
    assert (np.diff(t) >= 0).all()


@given(picture=pictures(), **TILINGS)
def test_a_network_that_learned_this_predicts_the_objects(picture, tile, overlap):
    "Prediction makes of the objects of all tiles those of the picture, each once"
    hw, boxes = picture
    boxes = boxes.clip(0, [*hw[::-1]]*2)
    labels = np.arange(len(boxes)) # A class each, so that objects which overlap are left alone
    n, t, inside, learned = tile_objects(boxes, hw, tile, overlap)
    def of(k):
        rows = learned & (t == k)
        part = torch.from_numpy(inside[rows]).float()
        return Detections(part, torch.full((len(part),), .5), torch.from_numpy(labels[n[rows]]))
    found = merge_tiles([of(k) for k in range(len(tile_grid(hw, tile, overlap)))], hw, tile, overlap)
    assert sorted(found.labels.tolist()) == labels.tolist()
    torch.testing.assert_close(found.boxes[found.labels.argsort()], torch.from_numpy(boxes).float(), atol=1e-3, rtol=0)


@pytest.fixture
def two(tmp_path):
    rng, sizes = np.random.default_rng(0), [(120, 200), (50, 60)]
    for i, hw in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*hw, 3), dtype=np.uint8)).save(tmp_path/f'{i}.png')
    return split(f'{tmp_path}/', sizes, [[[10, 10, 30, 30], [0, 0, 200, 120]], [[-5, 5, 20, 30]]])


def test_pixels_and_boxes_belong_together(two):
    tiles = tile_annotations(two, 80, .25)
    assert len(tiles) == len(tile_grid((120, 200), 80, .25)) + 1
    for i in range(len(tiles)):
        height, width, x1, y1, x2, y2 = tiles.crops[i].tolist()
        whole = read_annotated(two, 0 if i < len(tiles) - 1 else 1)
        assert read_annotated(tiles, i).equal(whole[:, y1:y2, x1:x2]) and whole.shape[1:] == (height, width)
        assert tiles.sizes[i].tolist() == [y2 - y1, x2 - x1]
    image, target = DetectionDataset(tiles, 64)[0]
    assert image.shape == (3, 64, 64) and target['boxes'][~target['crowd']].tolist() == [[8, 8, 24, 24]]
    assert target['crowd'].sum() == 1 # The large one is cut
    last = tiles.objects(len(tiles) - 1)
    assert last[0].tolist() == [[-5, 5, 20, 30]] and not last[2].any()


def test_crowds_stay_crowds(two):
    two.crowd[:] = [True, False, False]
    tiles = tile_annotations(two, 80, .25)
    for i in range(len(tiles) - 1):
        boxes, _, crowd = tiles.objects(i)
        small = (boxes[:, 2:] - boxes[:, :2]).prod(1) <= 400
        assert crowd[small].all()
    assert (~tiles.crowd).sum() == 2


def test_areas_shrink_with_what_is_seen(two):
    tiles = tile_annotations(two, 80, .25)
    full = (tiles.boxes[:, 2:] - tiles.boxes[:, :2]).prod(1)
    np.testing.assert_allclose(tiles.areas, full, rtol=1e-4)


def test_a_changed_file_is_read_again(two):
    import os
    tiles = tile_annotations(two, 80, .25)
    before = read_annotated(tiles, 0)
    Image.new('RGB', (200, 120), 'red').save(two.paths[0])
    os.utime(two.paths[0], ns=(1, 1))
    assert not read_annotated(tiles, 0).equal(before)
    Image.new('RGB', (200, 121), 'red').save(two.paths[0])
    with pytest.raises(ValueError, match='200x121 pixels, but its boxes are for 200x120'): read_annotated(tiles, 1)


def test_no_images(two): assert len(tile_annotations(two.take([]), 80, .25)) == 0
