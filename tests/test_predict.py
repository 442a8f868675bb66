"The detector and `yolox_predict`, on odd pictures, folders and videos."
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image, features
from torchvision import ops

from cjm_yolox_pytorch.files.checkpoints import Weights, save_weights
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.detection.detector import load_detector, predict
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.files.images import as_image
from cjm_yolox_pytorch.files.video import VideoWriter, read_video
from cjm_yolox_pytorch.inference import nms
from cjm_yolox_pytorch.model import build_model
from cjm_yolox_pytorch.commands.command import command


@pytest.fixture(scope='module')
def weights():
    torch.manual_seed(0)
    model = build_model('yolox_nano', 3, pretrained=False)
    return Weights(model.state_dict(), 'yolox_nano', 3, (0., 0., 0.), (1., 1., 1.), names=['cat', 'dog', 'owl'], size=64)


@pytest.fixture(scope='module')
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights')/'nano.safetensors'
    save_weights(weights, path)
    return str(path)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path/'pictures'
    (folder/'deep').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(['a.jpg', 'b.png', 'deep/a.jpg']): Image.fromarray(rng.integers(0, 256, (40 + 10*i, 60, 3), dtype=np.uint8)).save(folder/name)
    return folder


@pytest.mark.parametrize('size', [(1, 1), (8000, 6000), (3000, 2)])
def test_pictures_of_odd_sizes(weights, size):
    found = load_detector(weights, 'cpu')(Image.new('RGB', size, 'red'), conf=0, max_detections=5)
    assert len(found) == 5 and found.boxes.min() >= 0 and (found.boxes <= torch.tensor([size[0], size[1]]*2)).all()
    assert found.picture().size == size


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I', 'I;16', 'F'])
def test_pictures_in_other_modes(weights, mode, tmp_path):
    picture = Image.fromarray(np.zeros((30, 40), np.uint16)) if mode == 'I;16' else Image.new('L', (40, 30)).convert(mode)
    assert load_detector(weights, 'cpu')(picture, conf=0).image.shape == (3, 30, 40)


def test_folders_and_json(file, pictures, tmp_path, capsys):
    yolox_predict(file, [str(pictures)], out=str(tmp_path/'out'), conf=0., max_detections=4, device='cpu')
    record = json.loads((tmp_path/'out/detections.json').read_text())
    assert [os.path.relpath(i['file_name'], pictures) for i in record['images']] == ['a.jpg', 'b.png', 'deep/a.jpg']
    assert [(i['height'], i['width']) for i in record['images']] == [(40, 60), (50, 60), (60, 60)]
    assert [a['image_id'] for a in record['annotations']] == [0]*4 + [1]*4 + [2]*4 and [a['id'] for a in record['annotations']] == list(range(1, 13))
    assert record['categories'] == [dict(id=i, name=n) for i, n in enumerate(['cat', 'dog', 'owl'])]
    x, y, w, h = record['annotations'][0]['bbox']
    assert record['annotations'][0]['area'] == pytest.approx(w*h) and 0 <= x <= 60 and 0 <= y <= 40
    assert sorted(p.relative_to(tmp_path/'out').as_posix() for p in (tmp_path/'out').rglob('*.jpg')) == ['a.jpg', 'b.png.jpg', 'deep/a.jpg']
    assert '3 images, 12 objects' in capsys.readouterr().out


@pytest.mark.parametrize('write, wanted', [('json', ['detections.json']), ('pictures', ['a.jpg'])])
def test_what_is_written(file, pictures, tmp_path, write, wanted):
    yolox_predict(file, [str(pictures/'a.jpg')], out=str(tmp_path/'out'), write=write, device='cpu')
    assert [p.name for p in (tmp_path/'out').iterdir()] == wanted


def test_what_cannot_be_read_is_told_at_the_end(file, pictures, tmp_path, capsys):
    (pictures/'c.jpg').write_bytes((pictures/'a.jpg').read_bytes()[:-200])
    (pictures/'d.png').write_text('text')
    with pytest.raises(SystemExit) as end: yolox_predict(file, [str(pictures), str(tmp_path/'nowhere.jpg')], out=str(tmp_path/'out'), device='cpu')
    assert str(end.value).startswith('3 of the inputs could not be read or drawn:')
    for part in ('c.jpg', 'd.png', 'nowhere.jpg: no such file, folder or pattern'): assert part in str(end.value)
    assert len(list((tmp_path/'out').rglob('*.jpg'))) == 3


def test_at_the_shell(file, pictures, tmp_path):
    def run(*args): return subprocess.run([os.path.join(os.path.dirname(sys.executable), 'yolox_predict'), *args], capture_output=True, text=True, cwd=tmp_path)
    assert run('--help').returncode == 0
    done = run(file, str(pictures/'a.jpg'), str(pictures/'b.png'), '--device', 'cpu', '--out', 'out')
    assert done.returncode == 0 and '2 images' in done.stdout, done.stderr
    done = run(file, str(pictures/'nowhere'), '--device', 'cpu')
    assert done.returncode == 1 and 'nowhere: no such file' in done.stderr
    done = run(str(tmp_path/'none.pth'), str(pictures))
    assert done.returncode == 1 and done.stderr.strip().endswith('none.pth: no such file of weights')


def test_the_inputs_are_never_written_over(file, pictures):
    before = {p: p.read_bytes() for p in pictures.rglob('*.*')}
    with pytest.raises(ValueError, match='would be written over'): yolox_predict(file, [str(pictures)], out=str(pictures), device='cpu')
    assert {p: p.read_bytes() for p in pictures.rglob('*.*')} == before


def test_videos(file, tmp_path):
    pytest.importorskip('av')
    writer = VideoWriter(tmp_path/'clip.mp4')
    times = [0, .1, .25, .7]
    for n, seconds in enumerate(times): writer.add(Image.new('RGB', (65, 47), (60*n, 0, 255 - 60*n)), seconds)
    writer.close()
    frames = list(read_video(tmp_path/'clip.mp4'))
    assert [f.shape for f, _ in frames] == [(3, 46, 64)]*4 and [t for _, t in frames] == pytest.approx(times, abs=1e-3)
    assert frames[3][0][0].float().mean() > 150 > 60 > frames[0][0][0].float().mean()
    (tmp_path/'broken.mp4').write_text('no video')
    with pytest.raises(SystemExit, match='broken.mp4'):
        yolox_predict(file, [str(tmp_path/'clip.mp4'), str(tmp_path/'broken.mp4')], out=str(tmp_path/'out'), conf=0., max_detections=2, batch=3, device='cpu')
    record = json.loads((tmp_path/'out/detections.json').read_text())
    assert [i['frame'] for i in record['images']] == [0, 1, 2, 3] and [i['seconds'] for i in record['images']] == pytest.approx(times, abs=1e-3)
    assert [t for _, t in read_video(tmp_path/'out/clip.mp4')] == pytest.approx(times, abs=1e-3)


@pytest.fixture
def film(tmp_path):
    "Write a video of numbered shades with PyAV: name, codec, and format of the file if it is not that of the name"
    av = pytest.importorskip('av')
    def write(name, codec, frames=12, between=0, kind=None, side=64):
        if codec not in av.codecs_available: pytest.skip(f'PyAV without {codec}')
        with av.open(str(tmp_path/name), 'w', format=kind) as video:
            stream = video.add_stream(codec, rate=48000 if codec == 'aac' else 10)
            if codec == 'aac': made = [av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')]; made[0].rate = 48000
            else:
                stream.width, stream.height, stream.pix_fmt = side, side, 'yuv420p'
                if between: stream.codec_context.max_b_frames = between
                made = (av.VideoFrame.from_ndarray(np.full((side, side, 3), 20*n % 256, np.uint8), format='rgb24') for n in range(frames))
            for frame in (*made, None): video.mux(stream.encode(frame))
        return tmp_path/name
    return write


@pytest.mark.parametrize('name, codec, kind', [('a.avi', 'libx264', None), ('a.avi', 'mpeg4', None), ('a.mp4', 'libx264', 'h264'), ('a.mpg', 'mpeg2video', None)])
def test_times_rise_whatever_a_video_says(file, film, tmp_path, name, codec, kind):
    "In AVI, frames that others look back to have the times at which they are stored; a bare stream tells none"
    path = film(name, codec, between=2, kind=kind)
    times = [t for _, t in read_video(path)]
    assert len(times) >= 11 and all(a < b for a, b in zip(times, times[1:])) and times[-1] - times[0] == pytest.approx((.04 if kind == 'h264' else .1)*(len(times) - 1), abs=.3) # FFmpeg takes 25 in a second where nothing tells
    yolox_predict(file, [str(path)], out=str(tmp_path/'out'), device='cpu')
    drawn, = (tmp_path/'out').glob('*.mp4')
    assert len(list(read_video(drawn))) == len(times)


def test_a_video_of_sound_alone_loses_nothing_else(file, film, pictures, tmp_path):
    with pytest.raises(SystemExit, match='sound.mp4: no video stream'):
        yolox_predict(file, [str(film('sound.mp4', 'aac')), str(pictures/'a.jpg')], out=str(tmp_path/'out'), device='cpu')
    assert len(json.loads((tmp_path/'out/detections.json').read_text())['images']) == 1


@pytest.mark.parametrize('sent, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_is_stopped_keeps_what_was_found(sent, status, file, film, tmp_path):
    "Also a video that is half done"
    path = film('long.mp4', 'libx264', frames=3000, side=128)
    before = signal.signal(signal.SIGINT, signal.default_int_handler) # In the background it may be ignored, here and by all that is started
    process = subprocess.Popen([os.path.join(os.path.dirname(sys.executable), 'yolox_predict'), file, str(path), '--out', str(tmp_path/'out'), '--device', 'cpu', '--batch', '2'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    for _ in range(3000):
        if (tmp_path/'out/long.mp4').exists() or process.poll() is not None: break
        time.sleep(.02)
    time.sleep(.5)
    process.send_signal(sent)
    assert ('interrupted' in process.communicate(timeout=120)[1]) == (sent == signal.SIGINT) and process.returncode == status
    images = json.loads((tmp_path/'out/detections.json').read_text())['images']
    assert 0 < len(images) < 3000 and abs(len(list(read_video(tmp_path/'out/long.mp4'))) - len(images)) <= 1


def test_pictures_that_cannot_be_written_lose_nothing_else(file, pictures, tmp_path):
    "JPEG has at most 65,500 pixels a side; and a file may stand where a folder should"
    Image.new('RGB', (65501, 2)).save(pictures/'long.png')
    (tmp_path/'out').mkdir()
    (tmp_path/'out/deep').touch()
    with pytest.raises(SystemExit) as end: yolox_predict(file, [str(pictures)], out=str(tmp_path/'out'), conf=0., max_detections=1, device='cpu')
    assert str(end.value).startswith('2 of the inputs could not be read or drawn:')
    for part in ('out/deep/a.jpg could not be written', 'out/long.png.jpg could not be written'): assert part in str(end.value)
    assert len(json.loads((tmp_path/'out/detections.json').read_text())['annotations']) == 4
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['a.jpg', 'b.png.jpg', 'deep', 'detections.json']


def test_a_video_that_cannot_be_drawn_is_told_once(file, film, pictures, tmp_path, monkeypatch):
    av = pytest.importorskip('av')
    clip = film('clip.mp4', 'libx264')
    def refuse(self, *args, **kwargs): raise av.error.ExternalError(1, 'no more licences')
    monkeypatch.setattr(VideoWriter, 'begin', refuse)
    with pytest.raises(SystemExit, match=r'^1 of the inputs could not be read or drawn:\n.*out/clip.mp4 could not be written: .*no more licences'): yolox_predict(file, [str(clip), str(pictures/'a.jpg')], out=str(tmp_path/'out'), device='cpu')
    assert len(json.loads((tmp_path/'out/detections.json').read_text())['images']) == 13


def test_the_end_of_a_video_does_not_hide_what_was_wrong_with_it(tmp_path):
    pytest.importorskip('av')
    writer = VideoWriter(tmp_path/'a.mp4')
    writer.add(Image.new('RGB', (64, 48)), 0)
    with pytest.raises(ValueError, match='NaN'): writer.add(Image.new('RGB', (64, 48)), float('nan'))
    writer.close()


def test_without_pyav_photos_are_still_looked_at(file, pictures, tmp_path, monkeypatch):
    (pictures/'clip.mp4').write_bytes(b'a video')
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(SystemExit, match=r'^1 of the inputs could not be read or drawn:\n.*clip.mp4: videos need PyAV: pip install'): yolox_predict(file, [str(pictures)], out=str(tmp_path/'out'), device='cpu')
    assert len(json.loads((tmp_path/'out/detections.json').read_text())['images']) == 3


def test_links_keep_their_names(file, film, pictures, tmp_path):
    "As git-annex, DVC and caches of hubs keep files"
    (tmp_path/'store').mkdir()
    film('clip.mp4', 'libx264').rename(tmp_path/'store/def456')
    (pictures/'a.jpg').rename(tmp_path/'store/abc123')
    for name, to in (('p.jpg', 'abc123'), ('q.jpg', 'abc123'), ('deep/clip.mp4', 'def456')): (pictures/name).symlink_to(tmp_path/'store'/to)
    yolox_predict(file, [str(pictures)], out=str(tmp_path/'out'), device='cpu')
    assert sorted(p.relative_to(tmp_path/'out').as_posix() for p in (tmp_path/'out').rglob('*.*')) == ['b.png.jpg', 'deep/a.jpg', 'deep/clip.mp4', 'detections.json', 'p.jpg', 'q.jpg']
    assert len(list(read_video(tmp_path/'out/deep/clip.mp4'))) == 12
    with pytest.raises(ValueError, match='store/abc123 would be written over'): yolox_predict(file, [str(pictures/'p.jpg')], out=str(pictures), device='cpu')


def test_the_same_again(file, film, pictures, tmp_path, monkeypatch):
    "Patterns and folders do not find the pictures of the first time, which may be written over"
    film('pictures/clip.mp4', 'libx264')
    monkeypatch.chdir(tmp_path)
    for inputs in (['**/*.jpg'], ['pictures'], ['**/*.jpg', 'pictures/clip.mp4'], ['*']):
        for _ in range(2): yolox_predict(file, inputs, device='cpu')
    assert len(json.loads((tmp_path/'runs/predict/detections.json').read_text())['images']) == 3 + 12
    with pytest.raises(ValueError, match='would be written over'): yolox_predict(file, ['runs/predict/**/*.jpg'], device='cpu')


def test_what_others_wrote_is_not_written_over(file, film, pictures, tmp_path, monkeypatch):
    "Also where an evaluation left its detections"
    film('pictures/deep/clip.mp4', 'libx264')
    (pictures/'clip.mp4').write_bytes((pictures/'deep/clip.mp4').read_bytes())
    (pictures/'detections.json').write_text('[]')
    monkeypatch.chdir(pictures)
    before = {p: p.read_bytes() for p in pictures.rglob('*.*')}
    for given, write in (('deep/a.jpg', 'pictures'), ('deep/clip.mp4', 'pictures'), ('b.png', 'json'), ('b.png', 'both')):
        with pytest.raises(ValueError, match='(a.jpg|clip.mp4|detections.json) is there already, and does not say that it was written by yolox_predict: choose another folder with out'): yolox_predict(file, [given], out='.', write=write, device='cpu')
    assert {p: p.read_bytes() for p in pictures.rglob('*.*')} == before
    yolox_predict(file, ['b.png'], out='.', write='pictures', device='cpu')


def test_two_inputs_have_two_pictures(file, tmp_path):
    for name in ('a.png', 'a.png.jpg'): Image.new('RGB', (60, 40)).save(tmp_path/name)
    with pytest.raises(ValueError, match='a.png and .*a.png.jpg would both be drawn as'): yolox_predict(file, [str(tmp_path)], out=str(tmp_path/'out'), device='cpu')


def test_a_folder_that_may_not_be_read_is_not_empty(file, pictures, tmp_path, monkeypatch):
    "As root reads everything, the system is replaced"
    real = os.scandir
    def scandir(path):
        if str(path).endswith('deep'): raise PermissionError(13, 'Permission denied', str(path))
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(PermissionError, match='deep'): yolox_predict(file, [str(pictures)], out=str(tmp_path/'out'), device='cpu')


@pytest.mark.parametrize('high, shade', [(1, 128), (255, 128), (300, None), (float('nan'), None), (-1, None)])
def test_floats_of_pillow(high, shade, tmp_path):
    "From 0 to 1 or from 0 to 255; otherwise nobody knows what white is"
    Image.fromarray(np.array([[0, 128/255*high], [high, high]], np.float32)).save(tmp_path/'a.tif')
    for picture in (tmp_path/'a.tif', Image.open(tmp_path/'a.tif')):
        if shade is None:
            with pytest.raises((OSError, ValueError), match='floats'): as_image(picture)
        else: assert as_image(picture)[0].tolist() == [[0, shade], [255, 255]]


def test_a_large_picture_in_memory_is_no_bomb(monkeypatch):
    "Pillow's limit is for files, which can claim any size"
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 300_000)
    picture = np.arange(3000*900*3, dtype=np.uint32).reshape(900, 3000, 3).astype(np.uint8)
    assert torch.equal(as_image(Image.fromarray(picture)), torch.from_numpy(picture).permute(2, 0, 1))


@pytest.mark.skipif(not features.check('jpg_2000'), reason='this Pillow knows no JPEG 2000')
def test_a_picture_may_turn_out_smaller(tmp_path):
    Image.new('RGB', (80, 60), 'red').save(tmp_path/'a.jp2')
    with Image.open(tmp_path/'a.jp2') as image:
        image.reduce = 1 # Half its size, which it has once it is decoded
        assert as_image(image).shape == (3, 30, 40)


@pytest.mark.parametrize('num_classes', [3, 80, 1203, 20_000])
def test_suppression_is_that_of_each_class_alone(num_classes):
    "Small boxes in far tiles, whose corners had three digits left"
    g = torch.Generator().manual_seed(num_classes)
    for n in range(5):
        first = torch.randint(0, 100, (800,), generator=g)
        corner, side = torch.rand(100, 2, generator=g)[first]*600, (torch.rand(100, 2, generator=g)*6 + 2)[first]
        boxes = torch.cat([corner, corner + side], 1) + torch.rand(800, 4, generator=g)*.8
        labels, scores = first*7919 % num_classes, torch.rand(800, generator=g)*.9 + .05
        every = torch.zeros(800, num_classes).scatter(1, labels[:, None], scores[:, None])
        kept = torch.cat([rows[ops.nms(boxes[rows], scores[rows], .65)] for rows in ((labels == c).nonzero()[:, 0] for c in labels.unique())])
        found = nms(boxes, every, conf=.01, max_detections=800)
        torch.testing.assert_close(found.boxes, boxes[kept[scores[kept].argsort(descending=True)]], atol=0, rtol=0)


@pytest.mark.parametrize('size', [1e3, 1e7, 1e8, float('inf'), float('nan')])
def test_a_box_that_explodes_suppresses_nothing(size):
    boxes = torch.tensor([[10., 10, 20, 20], [10, 10, 20, 20.1], [10, 10, 20, 20], [-size, -size, size, size]])
    scores = torch.full((4, 80), .01)
    scores[[0, 1, 2, 3], [70, 70, 79, 0]] = torch.tensor([.9, .8, .7, .6])
    assert nms(boxes, scores).labels.tolist() == [70, 79, *[0]*(size < 1e9)]


def test_supervision(weights):
    pytest.importorskip('supervision')
    found = load_detector(weights, 'cpu')(np.zeros((40, 60, 3), np.uint8), conf=0, max_detections=3)
    theirs = found.to_supervision()
    np.testing.assert_array_equal(theirs.xyxy, found.boxes)
    assert len(theirs) == 3 and list(theirs.data['class_name']) == [found.name(i) for i in range(3)]


def test_real_weights_find_what_is_there(shared):
    detect = load_detector(shared/'weights/yolox_nano_coco.pth', 'cpu')
    truth = json.loads(next((shared/'data/coco_ccby').rglob('*.json')).read_text())
    names = {c['id']: c['name'] for c in truth['categories']}
    biggest = {}
    for a in truth['annotations']: biggest.setdefault(a['image_id'], []).append((a['area'], names[a['category_id']]))
    images = {i['id']: i['file_name'] for i in truth['images']}
    right = 0
    paths = {p.name: p for p in (shared/'data/coco_ccby').rglob('*.jpg')}
    chosen = list(biggest)[:30]
    found = detect([paths[os.path.basename(images[i])] for i in chosen])
    for i, d in zip(chosen, found): right += max(biggest[i])[1] in {d.name(n) for n in range(len(d))}
    assert right >= 18
    plain, mirrored = (predict(detect.model, [f.image for f in found[:8]], 416, **detect.stats, mirrored=m) for m in (False, True))
    assert sum(len(d) for d in mirrored) > .8*sum(len(d) for d in plain)


def test_an_error_of_compiled_code_is_told(capsys, monkeypatch):
    "Frames of Cython know no module"
    @command
    def some_command(): exec('raise OSError("the disk is gone")', {})
    monkeypatch.setattr(sys, 'argv', ['some_command'])
    with pytest.raises(SystemExit, match='some_command: error: the disk is gone'): some_command()


def test_what_jupyter_shows(weights):
    found = load_detector(weights, 'cpu')(Image.new('RGB', (900, 300), 'red'), conf=0, max_detections=3)
    assert Image.open(io.BytesIO(found._repr_png_())).size == (640, 213)
    assert Detections(*(torch.zeros(0) for _ in range(3)))._repr_png_() is None


@pytest.mark.parametrize('name, use', [('supervision', lambda path: Detections(*(torch.zeros(0) for _ in range(3))).to_supervision()), ('av', lambda path: next(read_video(path)))])
def test_missing_extras_say_what_to_install(name, use, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install (supervision|'cjm-yolox-pytorch.video.')"): use(tmp_path/'a.mp4')
