"Laws of the geometry of tiles."
import numpy as np
import pytest
from hypothesis import given, strategies as st

from cjm_yolox_pytorch.files.tiles import MARGIN, tile_grid, tile_intervals, whole_in_tile, whole_somewhere

TILINGS = dict(tile=st.integers(32, 300), overlap=st.floats(0, .9))
SIDES = st.tuples(st.integers(1, 900), st.integers(1, 900))


@given(length=st.integers(1, 3000), **TILINGS)
def test_intervals_cover_every_pixel_with_at_least_the_overlap(length, tile, overlap):
    intervals = tile_intervals(length, tile, overlap)
    assert intervals[0, 0] == 0 and intervals[-1, 1] == length
    if length <= tile: return
    shared = intervals[:-1, 1] - intervals[1:, 0]
    assert (shared >= min(round(tile*overlap), tile - 1)).all() and (np.diff(intervals, axis=1) == tile).all()


@given(length=st.integers(301, 3000), **TILINGS)
def test_one_tile_fewer_would_not_do(length, tile, overlap):
    n, step = len(tile_intervals(length, tile, overlap)), max(tile - round(tile*overlap), 1)
    assert tile + (n - 2)*step < length <= tile + (n - 1)*step


@given(hw=SIDES, **TILINGS)
def test_grids_cover_pictures(hw, tile, overlap):
    seen, tiles = np.zeros(hw, dtype=bool), tile_grid(hw, tile, overlap)
    fine = tiles if len(tiles) == 1 else tiles[:-1]
    for x1, y1, x2, y2 in fine.tolist(): seen[y1:y2, x1:x2] = True
    assert seen.all() and (len(tiles) == 1) == (max(hw) <= tile)
    if len(tiles) > 1: assert tiles[-1].tolist() == [0, 0, hw[1], hw[0]]


@given(hw=SIDES, where=st.tuples(st.floats(0, 1), st.floats(0, 1)), share=st.floats(0, 1), **TILINGS)
def test_what_is_no_larger_than_the_overlap_is_whole_somewhere(hw, where, share, tile, overlap):
    side = max(round(tile*overlap) - 2*tile*MARGIN, 0)*share
    corner = [max(n - side, 0)*f for n, f in zip(hw[::-1], where)]
    box = np.array([[*corner, *(min(c + side, n) for c, n in zip(corner, hw[::-1]))]])
    assert whole_somewhere(box, hw, tile, overlap + 2/tile if overlap < .8 else overlap).all() or share == 1


@given(hw=SIDES, corners=st.lists(st.floats(0, 1), min_size=4, max_size=4), **TILINGS)
def test_somewhere_means_in_one_of_the_tiles(hw, corners, tile, overlap):
    (x1, x2), (y1, y2) = (sorted(np.array(corners[k:k + 2])*n) for k, n in ((0, hw[1]), (2, hw[0])))
    tiles = tile_grid(hw, tile, overlap)
    fine = tiles if len(tiles) == 1 else tiles[:-1]
    boxes = np.tile([x1, y1, x2, y2], (len(fine), 1))
    assert whole_in_tile(boxes, fine, hw, tile).any() == whole_somewhere(boxes[:1], hw, tile, overlap)[0]
    assert whole_in_tile(boxes[:1], tiles[-1:], hw, tile).all() # The picture cuts nothing


@pytest.mark.parametrize('tile, overlap, what', [
    (31, .2, 'tile=31: give the side of the tiles in pixels, at least 32'), (-640, .2, 'tile=-640'), (0, .2, 'tile=0'),
    (64.5, .2, 'tile=64.5'), ('640', .2, "tile='640'"), (640, 1, 'overlap=1: neighbors share'),
    (640, -.1, 'overlap=-0.1'), (640, 128, 'overlap=128'), (640, float('nan'), 'overlap=nan')])
def test_options_of_no_use(tile, overlap, what):
    with pytest.raises(ValueError, match=what.replace('(', r'\(')): tile_intervals(1000, tile, overlap)


def test_an_overlap_of_nearly_all_still_moves():
    assert len(tile_intervals(64, 32, .999)) == 33


def test_too_many_tiles_are_refused():
    with pytest.raises(ValueError, match='overlap=0.99 makes 221595 tiles of 640 pixels for an image of 4000x3000'):
        tile_grid((3000, 4000), 640, .99)
    assert len(tile_grid((20, 5000), 640, .99)) == 729 # They look at each pixel 93 times
