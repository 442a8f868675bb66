"Cameras, and videos and images from the network."
import base64
import functools
import os
import time
from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from servers import Files, live, serve

from cjm_yolox_pytorch.files import streams
from cjm_yolox_pytorch.files.streams import Stream, as_stream, fetch_image, read_stream
from cjm_yolox_pytorch.files.video import VideoWriter

av = pytest.importorskip('av')


@pytest.fixture
def folder(tmp_path):
    writer = VideoWriter(tmp_path/'a.mp4')
    for n in range(20): writer.add(Image.new('RGB', (64, 48), (12*n,)*3), n/10)
    writer.close()
    Image.new('RGB', (30, 20), 'red').save(tmp_path/'a.png')
    (tmp_path/'text.mp4').write_text('no video')
    return tmp_path


@pytest.fixture
def root(folder):
    with serve(functools.partial(Files, directory=folder)) as root: yield root


# ---- Files on a server

@pytest.mark.parametrize('every', [1, 3])
def test_file_on_a_server_is_read_whole_however_slowly(root, every):
    found = []
    for n, image, seconds, arrived in read_stream(Stream(f'{root}/a.mp4'), every):
        assert arrived is None and abs(image.float().mean() - 12*n) < 4
        found.append((n, round(seconds, 3)))
        time.sleep(.02)
    assert found == [(n, n/10) for n in range(0, 20, every)]


@pytest.mark.parametrize('name, told', [('none.mp4', '404 Not Found'), ('text.mp4', 'this is not a video')])
def test_address_without_a_video(root, name, told):
    with pytest.raises(OSError, match=f'/{name}: .*{told}'): list(read_stream(Stream(f'{root}/{name}')))


def test_unreachable_address_and_missing_camera():
    with pytest.raises(OSError, match='127.0.0.1:9/a.mp4: Connection refused'):
        list(read_stream(Stream('http://me:secret@127.0.0.1:9/a.mp4')))
    if not os.path.exists('/dev/video97'):
        with pytest.raises(OSError, match='camera 97: .*The first camera is 0'): list(read_stream(Stream('97')))


def test_server_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(streams, 'OPENING', .3)
    class Silent(Files):
        def do_GET(self): time.sleep(2)
    with serve(Silent) as root, pytest.raises(OSError, match='a.mp4: no data for'):
        list(read_stream(Stream(f'{root}/a.mp4')))


def test_playlist_on_a_server_may_not_name_local_files(root, folder):
    secret = folder/'a.mp4'
    (folder/'list.m3u8').write_text(f'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n')
    with pytest.raises(OSError, match='list.m3u8'): list(read_stream(Stream(f'{root}/list.m3u8')))


def test_image_on_a_server(root):
    assert fetch_image(Stream(f'{root}/a.png')).unique().tolist() == [0, 255]
    with pytest.raises(OSError, match='/none.png: HTTP Error 404'): fetch_image(Stream(f'{root}/none.png'))
    with pytest.raises(OSError, match='/text.mp4: .*cannot be decoded'): fetch_image(Stream(f'{root}/text.mp4'))


def test_login_of_an_image_is_sent(folder):
    class Guarded(Files):
        def do_GET(self):
            wanted = 'Basic ' + base64.b64encode(b'me:a@b').decode()
            if self.headers['Authorization'] == wanted: return super().do_GET()
            self.send_error(401)
    with serve(functools.partial(Guarded, directory=folder)) as root:
        assert len(fetch_image(Stream(f'{root}/a.png'.replace('//', '//me:a%40b@')))) == 3
        with pytest.raises(OSError, match='401'): fetch_image(Stream(f'{root}/a.png'))


# ---- Live streams

def test_slow_reader_of_a_live_stream_gets_the_newest_frame():
    with serve(live()) as root, closing(read_stream(Stream(root))) as frames:
        numbers, ages = [], []
        for n, image, seconds, arrived in frames:
            numbers.append(n)
            ages.append(time.time() - arrived)
            assert seconds == pytest.approx(n/25, abs=.01)
            if len(numbers) == 8: break
            time.sleep(.2)
    steps = np.diff(numbers)
    assert numbers[0] <= 30 and (steps >= 1).all() and np.median(steps) >= 4
    assert np.median(ages) < .15


def test_fast_reader_of_a_live_stream_gets_its_end():
    with serve(live(frames=40)) as root: numbers = [n for n, *_ in read_stream(Stream(root))]
    assert numbers[-1] >= 38 and len(numbers) > 15


def test_every_so_manyth_frame_of_a_live_stream():
    with serve(live(frames=60)) as root: numbers = [n for n, *_ in read_stream(Stream(root), every=5)]
    assert numbers and all(n % 5 == 0 for n in numbers)


def test_live_stream_before_other_inputs_is_refused():
    with serve(live()) as root, pytest.raises(ValueError, match='is live and has no end: make it the last input'):
        next(read_stream(Stream(root), endless=False))


def test_live_stream_that_falls_silent_is_an_error(monkeypatch):
    monkeypatch.setattr(streams, 'SILENCE', 1)
    with serve(live(frames=30, stall=4)) as root:
        with pytest.raises(OSError, match='no data for'): list(read_stream(Stream(root)))


# ---- Names

def test_secrets_are_neither_shown_nor_in_names():
    stream = Stream('rtsp://me:secret@cam.local:554/one/two?token=secret#secret')
    assert str(stream) == 'rtsp://cam.local:554/one/two' and stream.file_name == 'cam.local-554-one-two'


@pytest.mark.parametrize('given, told', [
    ('ftp://a/b.mp4', 'only http, https, rtsp'), ('file:///etc/passwd', 'only http, https, rtsp'),
    ('http:///a', 'no host'),
    ('http://me:secret@a/b.mp4', '^http://a/b.mp4 is on the network: to let it be read, add --network')])
def test_addresses_that_are_refused(given, told):
    with pytest.raises(ValueError, match=told): as_stream(given, exists=False, network='secret' not in given)


@pytest.mark.parametrize('given', ['a.jpg', 'a/0', '²', '**/*.jpg', '0.jpg', ''])
def test_files_and_patterns_are_no_streams(given): assert as_stream(given, exists=False, network=True) is None


def test_file_with_the_name_of_a_camera_is_a_file(): assert as_stream('0', exists=True, network=False) is None
