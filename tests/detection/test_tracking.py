"Objects keep their numbers: on shapes whose paths are known, by MOTA and IDF1."
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes_film import SIZE, ColorDetector, film, paths, read_mot, scores_of_tracks

from cjm_yolox_pytorch.detection import predict
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.detection.predict import yolox_predict

pytest.importorskip('trackers')
from cjm_yolox_pytorch.detection.tracking import ( # noqa: E402
    TrackedDetections, Tracker, import_trackers, mot_lines, tracking_conf)


def detections(boxes, scores=None):
    scores = torch.full((len(boxes),), .8) if scores is None else torch.tensor(scores)
    boxes = torch.tensor(np.asarray(boxes)).float().reshape(-1, 4)
    return Detections(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64), ['shape'])


def track(frames, missing=.1, noise=1., seed=0, rate=25, keep_times=True):
    "Truth and tracks by frame, of detections with noise of which some are missing, in any order"
    rng, tracker, truth, tracks = np.random.default_rng(seed), Tracker(.25), {}, {}
    for count, n in enumerate(frames):
        boxes = paths(n/rate)
        truth[n] = dict(enumerate(boxes))
        seen = rng.permutation(np.flatnonzero(rng.random(len(boxes)) >= missing))
        found = detections(boxes[seen] + rng.normal(0, noise, (len(seen), 4)))
        found = tracker(found, n/rate if keep_times else count/rate)
        tracks[n] = {i: b for i, b in zip(found.track_ids.tolist(), found.boxes.numpy()) if i}
    return truth, tracks


# ---- How good the numbers are

@pytest.mark.parametrize('missing, least', [(0, .97), (.1, .85)])
def test_mota_and_idf1_of_shapes_with_known_paths(missing, least):
    pytest.importorskip('motmetrics')
    mota, idf1, switches = scores_of_tracks(*track(range(200), missing))
    assert mota > least and idf1 > least and switches == 0


def test_uneven_steps_keep_the_numbers_because_times_are_told():
    pytest.importorskip('motmetrics')
    frames = np.cumsum(np.random.default_rng(1).integers(1, 14, 30)).tolist()
    truth, tracks = track(frames, missing=0)
    mota, idf1, switches = scores_of_tracks(truth, tracks)
    assert mota > .85 and idf1 > .85 and switches == 0
    assert {i for found in tracks.values() for i in found} == {1, 2, 3}


def test_low_scores_continue_tracks_but_start_none():
    tracker, box = Tracker(.5), [[10, 10, 50, 50]]
    ids = [tracker(detections(box, [s]), n/25).track_ids.tolist() for n, s in enumerate([.3, .3, .8, .8, .3, .3, .8])]
    assert ids == [[], [], [0], [1], [1], [1], [1]]


def test_an_object_that_was_lost_for_long_gets_a_new_number():
    tracker, box = Tracker(.5), [[10, 10, 50, 50]]
    times = [0, .04, .08, .9, .94, 2.5, 2.54]
    assert [tracker(detections(box), t).track_ids.tolist() for t in times][-1] == [2]


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_rows_stay_together_and_detections_are_all_kept(scores, seed):
    "Boxes, scores and numbers belong to each other in whatever order the package returns them"
    rng = np.random.default_rng(seed)
    left = np.arange(len(scores))[:, None]*60 + rng.integers(0, 9, (len(scores), 2))
    found, tracker = detections(np.concatenate([left, left + 30], 1), scores), Tracker(.5)
    for n in range(3): result = tracker(found, n/25)
    high = [s for s in torch.tensor(scores).tolist() if s > .5]
    assert [s for s in result.scores.tolist() if s > .5] == high
    rows = [found.boxes.tolist().index(b) for b in result.boxes.tolist()]
    assert rows == sorted(rows) and found.scores[rows].tolist() == result.scores.tolist()
    assert all((i > 0) == (s >= .5) for i, s in zip(result.track_ids.tolist(), result.scores.tolist()))


def test_conf_of_a_detector_whose_objects_are_tracked():
    assert tracking_conf(.25) == .1 and tracking_conf(.05) == .05 and tracking_conf([.4, 1.]) == [.1, 1.]


def test_nothing_found_and_no_frames():
    tracker = Tracker(.5)
    assert len(tracker(detections([]), 0.)) == 0
    assert list(mot_lines(TrackedDetections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0),
                                            track_ids=torch.zeros(0)), 0)) == []


def test_what_is_remembered_does_not_grow():
    tracker = Tracker(.5, trail=1.)
    for n in range(1500): # A new object every second
        x = 100*(n//30 % 3)
        tracker(detections([[x, 10, x + 40, 50]]), n/30)
    assert len(tracker.points) <= 2 and max(map(len, tracker.points.values())) <= 31
    assert len(tracker.tracker.tracks) <= 3


# ---- The command

@pytest.fixture
def detector(monkeypatch):
    monkeypatch.setattr(predict, 'load_detector', lambda *args: ColorDetector())
    monkeypatch.setattr(predict, 'remarks', lambda *args: [])


@pytest.mark.parametrize('every, least, most', [(1, .94, 0), (5, .8, 1)])
def test_video_with_known_paths(detector, tmp_path, every, least, most):
    "From a file to tracks in the form of MOTChallenge; of one shape, the part that is not hidden jumps"
    pytest.importorskip('av')
    pytest.importorskip('motmetrics')
    clip, out = film(tmp_path/'clip.mp4'), tmp_path/'out'
    for _ in range(2): yolox_predict('weights', [str(clip)], out=str(out), track=True, every=every)
    tracks = read_mot(out/'clip.tracks.txt')
    truth = {n: dict(enumerate(paths(n/25))) for n in range(0, 100, every)}
    mota, idf1, switches = scores_of_tracks(truth, tracks)
    assert mota > least and idf1 > least and switches <= most, (mota, idf1, switches)
    coco = json.loads((out/'detections.json').read_text())
    assert [i['frame'] for i in coco['images']] == [*range(0, 100, every)]
    rows = [a for a in coco['annotations'] if 'track_id' in a]
    assert len(rows) == sum(map(len, tracks.values())) and len({a['track_id'] for a in rows}) == 3 + most
    first = next(a for a in rows if a['image_id'] == 1)
    x, y, w, h = first['bbox']
    assert tracks[every][first['track_id']] == pytest.approx([x, y, x + w, y + h], abs=.002)
    assert {p.name for p in out.iterdir()} == {'clip.mp4', 'clip.tracks.txt', 'detections.json'}


def test_motmetrics_reads_the_file(detector, tmp_path):
    "Which counts pixels from 1, too"
    pytest.importorskip('av')
    motmetrics = pytest.importorskip('motmetrics')
    yolox_predict('weights', [str(film(tmp_path/'clip.mp4', 1.))], out=str(tmp_path/'out'), track=True, write='json')
    table = motmetrics.io.loadtxt(str(tmp_path/'out/clip.tracks.txt'), fmt='mot15-2D')
    ours = read_mot(tmp_path/'out/clip.tracks.txt')
    (frame, number), row = next(table.iterrows())[0], table.iloc[0]
    assert row[['X', 'Y']].tolist() == pytest.approx(ours[frame - 1][number][:2])


def test_trails_are_drawn(detector, tmp_path):
    found = TrackedDetections(torch.tensor([[10., 10, 30, 30]]), torch.ones(1), torch.zeros(1, dtype=torch.int64),
                              ['shape'], torch.full((3, *SIZE[::-1]), 255, dtype=torch.uint8),
                              torch.tensor([2]), {2: [(100., 80.), (200., 80.)], 3: [(5., 5.)]})
    pixels = np.asarray(found.draw())
    assert (pixels[80, 150] == [44, 160, 44]).all() and (pixels[120, 150] == 255).all()


def test_images_have_no_tracks(detector, images, tmp_path):
    with pytest.raises(ValueError, match='--track is for videos, and 3 inputs are images, such as .*a.jpg: leave them'):
        yolox_predict('weights', [str(images)], out=str(tmp_path/'out'), track=True)
    assert not (tmp_path/'out').exists()
    with pytest.raises(ValueError, match='and 1 input is an image, such as .*a.jpg'):
        yolox_predict('weights', [str(images/'a.jpg')], out=str(tmp_path/'out'), track=True)


def test_missing_package_is_named_before_anything_is_read(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'trackers', None)
    with pytest.raises(ImportError, match=r"pip install 'cjm-yolox-pytorch\[track\]'"): import_trackers()
    with pytest.raises(ImportError, match='without a display: pip install --no-deps trackers'): import_trackers()
    with pytest.raises(ImportError, match='track'):
        yolox_predict('no such weights', [str(images)], out=str(tmp_path/'out'), track=True)


@pytest.mark.parametrize('text', [
    'notes', '1,1,10,20,30,40,0.9,-1,-1,-1\n', '1,1,1.000,2.000,3.000,4.000,0.9000,-1,-1,-1\nx'])
def test_tracks_of_others_are_not_overwritten(detector, tmp_path, text):
    pytest.importorskip('av')
    clip, out = film(tmp_path/'clip.mp4', .2), tmp_path/'out'
    out.mkdir()
    (out/'clip.tracks.txt').write_text(text)
    with pytest.raises(ValueError, match='clip.tracks.txt exists and was not written by yolox_predict'):
        yolox_predict('weights', [str(clip)], out=str(out), track=True)
    assert (out/'clip.tracks.txt').read_text() == text
