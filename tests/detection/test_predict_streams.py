"`yolox_predict` on addresses, live streams and cameras, and videos of any length."
import functools
import gc
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from servers import Files, live, serve
from shapes_film import ColorDetector, film

from cjm_yolox_pytorch.detection import inputs, predict
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.files.video import VideoWriter, read_video

pytest.importorskip('av')
COMMAND = os.path.join(os.path.dirname(sys.executable), 'yolox_predict')


@pytest.fixture
def use(monkeypatch):
    "Predict with a detector that is given"
    monkeypatch.setattr(predict, 'remarks', lambda *args: [])
    return lambda detector: monkeypatch.setattr(predict, 'load_detector', lambda *args: detector)


@pytest.fixture
def root(tmp_path):
    (tmp_path/'www').mkdir()
    film(tmp_path/'www/clip.mp4', seconds=1.)
    for name in ('a.jpg', 'b.png'): Image.new('RGB', (60, 40), (220, 30, 30)).save(tmp_path/'www'/name)
    with serve(functools.partial(Files, directory=tmp_path/'www')) as root: yield root


def record(out): return json.loads((out/'detections.json').read_text())


def run(*inputs, out, **options): yolox_predict('weights', [str(i) for i in inputs], out=str(out), **options)


# ---- Addresses of files

def test_videos_and_images_with_addresses(use, root, tmp_path):
    use(ColorDetector())
    out, host = tmp_path/'out', root.removeprefix('http://').replace(':', '-')
    names = f'{root}/a.jpg', f'{root}/clip.mp4?token=secret', f'{root}/b.png'
    for _ in range(2): run(*names, tmp_path/'www/a.jpg', out=out, network=True)
    images = record(out)['images']
    shown = [f'{root}/a.jpg', *[f'{root}/clip.mp4']*25, f'{root}/b.png', str(tmp_path/'www/a.jpg')]
    assert [i['file_name'] for i in images] == shown and 'secret' not in (out/'detections.json').read_text()
    assert [i['frame'] for i in images[1:26]] == [*range(25)] and 'arrived' not in images[1]
    made = {'detections.json', 'a.jpg', f'{host}-a.jpg', f'{host}-clip.mp4', f'{host}-b.png.jpg'}
    assert {p.name for p in out.iterdir()} == made


def test_addresses_need_permission(use, root, tmp_path):
    with pytest.raises(ValueError, match='clip.mp4 is on the network: to let it be read, add --network'):
        run(f'{root}/clip.mp4', out=tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_addresses_that_cannot_be_read_lose_nothing_else(use, root, tmp_path):
    use(ColorDetector())
    (tmp_path/'www/text.mp4').write_text('no video')
    wrong = f'{root}/none.mp4', f'{root}/text.mp4', f'{root}/none.jpg', 'http://127.0.0.1:9/a.mp4'
    with pytest.raises(SystemExit) as end: run(*wrong, f'{root}/a.jpg', out=tmp_path/'out', network=True)
    told = str(end.value)
    assert told.startswith('4 of the inputs') and 'this is not a video' in told and 'Connection refused' in told
    assert told.count('404') == 2 and len(record(tmp_path/'out')['images']) == 1


def test_names_that_a_request_cannot_have_as_they_are(use, root, tmp_path):
    use(ColorDetector())
    for name in ('my caf\u00e9 #1.jpg', 'my caf\u00e9 1.jpg'):
        Image.new('RGB', (60, 40), (220, 30, 30)).save(tmp_path/'www'/name)
    (tmp_path/'www/clip.mp4').rename(tmp_path/'www/ein Film \u00fc.mp4')
    names = f'{root}/my caf\u00e9 1.jpg', f'{root}/my%20caf%C3%A9%20%231.jpg', f'{root}/ein Film \u00fc.mp4'
    run(*names, out=tmp_path/'out', network=True)
    assert len(record(tmp_path/'out')['images']) == 27


@pytest.mark.parametrize('name', ['a.jpg', 'clip.mp4'])
def test_no_message_has_the_password(use, tmp_path, name):
    use(ColorDetector())
    with pytest.raises(SystemExit) as end:
        run(f'http://user:secret@127.0.0.1:9x/{name}?token=secret', out=tmp_path/'out', network=True)
    assert name in str(end.value) and 'secret' not in str(end.value)


def test_videos_without_frames_are_reported(use, tmp_path, monkeypatch):
    use(ColorDetector())
    monkeypatch.setattr(inputs, 'read_video', lambda *args: iter(()))
    with pytest.raises(SystemExit, match='clip.mp4: it has no frames that can be decoded'):
        run(film(tmp_path/'clip.mp4', seconds=.2), out=tmp_path/'out')


@pytest.mark.skipif(os.path.exists('/dev/video97'), reason='there is such a camera')
def test_camera_that_does_not_exist(use, tmp_path):
    use(ColorDetector())
    with pytest.raises(SystemExit, match='camera 97: .*it must be connected'): run('97', out=tmp_path/'out')


@pytest.mark.parametrize('inputs, told', [
    (['0', '1'], 'camera 0 and camera 1 have no end: run a command with an --out for each'),
    (['0', 'rtsp://a/b'], 'camera 0 and rtsp://a/b have no end'),
    (['rtsp://a/b', '{root}/clip.mp4'], 'rtsp://a/b has no end, and .*clip.mp4 would never be read: give it last'),
    (['{root}/clip.mp4', '{root}/clip.mp4?2'], 'would both be drawn as'), (['udp://a'], 'only http, https, rtsp')])
def test_streams_that_cannot_be_read_together(use, root, tmp_path, inputs, told):
    with pytest.raises(ValueError, match=told):
        run(*(i.format(root=root) for i in inputs), out=tmp_path/'out', network=True)
    assert not (tmp_path/'out').exists()


def test_address_that_turns_out_to_be_live_is_read_last(use, root, tmp_path):
    use(ColorDetector())
    with serve(live()) as stream, pytest.raises(SystemExit, match='is live and has no end: make it the last input'):
        run(stream, f'{root}/a.jpg', out=tmp_path/'out', network=True)
    assert len(record(tmp_path/'out')['images']) == 1


# ---- Live streams

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_live_stream_stays_live_and_ends_on_a_signal(use, tmp_path, capsys, number):
    "A detector that is slower than the stream"
    pytest.importorskip('trackers')
    ends = []
    def slow():
        time.sleep(.15)
        ends.append(time.time())
        if len(ends) == 8: os.kill(os.getpid(), number)
    use(ColorDetector(slow))
    with serve(live()) as root: run(root, out=tmp_path/'out', network=True, track=True)
    images, printed = record(tmp_path/'out')['images'], ' '.join(capsys.readouterr().out.split())
    assert len(images) == 8 and {i['file_name'] for i in images} == {root}
    steps = np.diff([i['frame'] for i in images])
    assert np.median(steps) >= 3 and all(time.time() - i['arrived'] < 60 for i in images)
    half, most, skipped = map(int, re.search(
        r'from the arrival of a frame to its result (\d+) ms \(median\), (\d+) ms \(95 %\); (\d+) frames? skipped',
        printed).groups())
    pace = 1000*np.median(np.diff(ends)) # Per frame, longer on a busy machine
    assert 150 <= half <= most and half < 2*pace and skipped == sum(steps - 1) # A queue would keep frames for longer
    clip, = (tmp_path/'out').glob('*.mp4')
    assert clip.with_suffix('.tracks.txt').exists() and len([*(tmp_path/'out').iterdir()]) == 3
    times = [t for _, t in read_video(clip)]
    assert np.diff(times) == pytest.approx(steps/25, abs=.01)


def test_files_are_not_skipped_unless_asked(use, tmp_path, capsys):
    use(ColorDetector(lambda: time.sleep(.05)))
    clip = film(tmp_path/'clip.mp4', seconds=1.)
    for every, frames in ((1, [*range(25)]), (7, [0, 7, 14, 21]), (100, [0])):
        run(clip, out=tmp_path/'out', every=every)
        images = record(tmp_path/'out')['images']
        assert [i['frame'] for i in images] == frames
        assert [i['seconds'] for i in images] == pytest.approx([n/25 for n in frames], abs=.002)
    assert 'frames skipped' not in capsys.readouterr().out
    with pytest.raises(ValueError, match='every=0: must be at least 1'): run(clip, out=tmp_path/'out', every=0)


def test_interrupted_video_keeps_its_tracks(use, tmp_path, heeded):
    pytest.importorskip('trackers')
    calls = []
    def interrupt():
        calls.append(0)
        if len(calls) == 10: os.kill(os.getpid(), signal.SIGINT)
    use(ColorDetector(interrupt))
    clip, out = film(tmp_path/'clip.mp4', seconds=1.), tmp_path/'out'
    with pytest.raises(KeyboardInterrupt): run(clip, out=out, track=True, batch=1)
    assert {p.name for p in out.iterdir()} == {'clip.mp4', 'clip.tracks.txt', 'detections.json'}
    lines = (out/'clip.tracks.txt').read_text().splitlines()
    assert len(record(out)['images']) == len(list(read_video(out/'clip.mp4'))) == 9
    assert {int(line.partition(',')[0]) for line in lines} == {*range(2, 10)}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_command_on_a_live_stream(file, tmp_path, number, heeded):
    with serve(live()) as root:
        words = [COMMAND, file, root, '--network', '--out', tmp_path/'out', '--device', 'cpu']
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(1500):
            if [*(tmp_path/'out').glob('*.mp4*')] or process.poll() is not None: break
            time.sleep(.02)
        time.sleep(.5)
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and 'Traceback' not in errors, errors
    images = record(tmp_path/'out')['images']
    assert images and re.search(r'\d frames? skipped', ' '.join(printed.split()))
    clip, = (tmp_path/'out').glob('*.mp4')
    assert len(list(read_video(clip))) == len(images)
    assert {p.name for p in (tmp_path/'out').iterdir()} == {clip.name, 'detections.json'}


# ---- Memory

def test_memory_does_not_grow_with_the_length_of_a_video(use, tmp_path):
    "What Python holds once garbage is collected; benchmarks/video_memory.py measures the whole process"
    pytest.importorskip('trackers')
    writer = VideoWriter(tmp_path/'clip.mp4')
    square = Image.new('RGB', (32, 32), 'white')
    square.paste((220, 30, 30), (8, 8, 24, 24))
    for n in range(2400): writer.add(square, n/25)
    writer.close()
    calls, held = itertools.count(), []
    class Watched(ColorDetector):
        def __call__(self, images, *args, **options):
            if next(calls) % 20 == 0:
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
            return super().__call__(images, *args, **options)
    use(Watched())
    gc.freeze() # Fewer objects to look at
    tracemalloc.start()
    try: run(tmp_path/'clip.mp4', out=tmp_path/'out', batch=4, track=True)
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    early, late = min(held[8:14]), min(held[-6:]) # The lowest, once Python's free lists are full
    assert len(held) == 30 and late < early + 60_000, held # Of 1,300 frames: an empty dict for each has 80,000
    coco = record(tmp_path/'out')
    assert len(coco['images']) == len(coco['annotations']) == 2400
    assert len((tmp_path/'out/clip.tracks.txt').read_text().splitlines()) == 2399


def test_large_images_go_through_the_network_in_small_groups(monkeypatch):
    monkeypatch.setattr(predict, '_MOST_BYTES', 1000)
    def sizes(*sides):
        frames = [('a', 'b', {}, torch.zeros(3, n, n)) for n in sides]
        return [len(group) for group in predict._groups(frames, 4)]
    assert sizes(5, 5, 5, 5, 5, 5) == [4, 2]
    assert sizes(40, 40, 5, 40, 5) == [1, 1, 2, 1]
    assert sizes() == []
