"`yolox_predict` on images, folders and videos: what it writes, and what it refuses."
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.detection import predict
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.files.checkpoints import save_weights
from cjm_yolox_pytorch.files.video import VideoWriter, read_video

COMMAND = os.path.join(os.path.dirname(sys.executable), 'yolox_predict')


def run(file, *inputs, out, **kwargs):
    yolox_predict(file, [str(i) for i in inputs], out=str(out), device='cpu', **kwargs)


def record(out): return json.loads((out/'detections.json').read_text())


def drawn(out): return sorted(p.relative_to(out).as_posix() for p in out.rglob('*.*') if p.suffix != '.json')


def contents(folder): return {p: p.read_bytes() for p in folder.rglob('*.*')}


# ---- What is written

def test_json_and_drawn_images_of_a_folder(file, images, tmp_path, capsys):
    run(file, images, out=tmp_path/'out', conf=0., max_detections=4)
    coco = record(tmp_path/'out')
    assert [os.path.relpath(i['file_name'], images) for i in coco['images']] == ['a.jpg', 'b.png', 'deep/a.jpg']
    assert [(i['height'], i['width']) for i in coco['images']] == [(40, 60), (50, 60), (60, 60)]
    assert [a['image_id'] for a in coco['annotations']] == [0]*4 + [1]*4 + [2]*4
    assert [a['id'] for a in coco['annotations']] == list(range(1, 13))
    assert coco['categories'] == [dict(id=i, name=n) for i, n in enumerate(['cat', 'dog', 'owl'])]
    x, y, w, h = coco['annotations'][0]['bbox']
    assert coco['annotations'][0]['area'] == pytest.approx(w*h) and 0 <= x <= 60 and 0 <= y <= 40
    assert drawn(tmp_path/'out') == ['a.jpg', 'b.png.jpg', 'deep/a.jpg']
    assert '3 images, 12 objects' in capsys.readouterr().out


def test_json_has_the_boxes_and_the_failures(file, images, tmp_path, capsys):
    "Everything else goes to stderr"
    (images/'d.png').write_text('text')
    with pytest.raises(SystemExit) as end:
        run(file, images, out=tmp_path/'out', conf=0., max_detections=4, json=True)
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert end.value.code == 3 and [*found['failed']] == [str(images/'d.png')]
    assert found['detections'] == record(tmp_path/'out') and found['out'] == str(tmp_path/'out')
    assert found['images'] == 3 and sum(found['objects'].values()) == 12 and '3 images, 12 objects' in printed.err
    (images/'d.png').unlink()
    run(file, images, out=tmp_path/'drawn', write='pictures', json=True)
    assert 'detections' not in json.loads(capsys.readouterr().out)


class Doubts:
    "A detector that finds one object twice, as two classes, whatever it is asked; stands in for a `Detector`"
    names, num_classes, bit_depth, conf, notes, model = ['cat', 'dog'], 2, 16, .25, {}, None

    def __call__(self, images, batch, **_):
        boxes = torch.tensor([[5., 5, 40, 35], [5, 5, 40, 34]])
        return [Detections(boxes, torch.tensor([.9, .8]), torch.tensor([0, 1]), self.names, image) for image in images]


def test_pictures_have_one_class_for_each_object(images, tmp_path, monkeypatch, capsys):
    "While the record has both, which is said; with multi_label, pictures have both, too"
    monkeypatch.setattr(predict, 'load_detector', lambda *_: Doubts())
    shown, draw = [], Detections.draw
    monkeypatch.setattr(Detections, 'draw', lambda self, **kwargs: (shown.append(len(self)), draw(self, **kwargs))[1])
    run('weights', images, out=tmp_path/'one')
    assert shown == [1]*3 and len(record(tmp_path/'one')['annotations']) == 6
    said = 'not drawn: 3 boxes on objects with a higher-scoring box of another class; --class-agnostic drops them'
    assert said in ' '.join(capsys.readouterr().out.split())
    run('weights', images, out=tmp_path/'both', multi_label=True)
    assert shown[3:] == [2]*3 and 'not drawn' not in capsys.readouterr().out
    run('weights', images, out=tmp_path/'loose', iou=.99)
    assert shown[6:] == [2]*3
    run('weights', images, out=tmp_path/'json', write='json')
    assert 'not drawn' not in capsys.readouterr().out and len(shown) == 9


@pytest.mark.parametrize('write, wanted', [('json', ['detections.json']), ('pictures', ['a.jpg'])])
def test_write_chooses_files(file, images, tmp_path, write, wanted):
    run(file, images/'a.jpg', out=tmp_path/'out', write=write)
    assert [p.name for p in (tmp_path/'out').iterdir()] == wanted


@pytest.mark.parametrize('name, value', [('write', 'text'), ('conf', 2.), ('iou', -1.), ('batch', 0), ('img_size', 0)])
def test_options_out_of_range_are_refused_before_anything_is_read(images, tmp_path, name, value):
    with pytest.raises(ValueError, match=f'{name}='): run('no such file', images, out=tmp_path/'out', **{name: value})
    assert not (tmp_path/'out').exists()


def test_command_at_the_shell(file, images, tmp_path):
    inputs = str(images/'a.jpg'), str(images/'b.png')
    done = subprocess.run([COMMAND, file, *inputs, '--device', 'cpu', '--img-size', '96', '--out', 'out'],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and '2 images' in done.stdout, done.stderr


def test_command_says_in_one_line_what_is_wrong(images, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['yolox_predict', str(images/'none.pth'), str(images)])
    with pytest.raises(SystemExit, match='^yolox_predict: error: .*none.pth: .*$'): yolox_predict()


def test_same_run_again_finds_the_same_inputs(file, film, images, tmp_path, monkeypatch):
    "Patterns and folders do not find what was drawn the first time, which may be overwritten"
    film('images/clip.mp4', 'libx264', frames=3)
    monkeypatch.chdir(tmp_path)
    for inputs in (['**/*.jpg'], ['images'], ['**/*.jpg', 'images/clip.mp4'], ['*']):
        for _ in range(2): yolox_predict(file, inputs, device='cpu')
    assert len(record(tmp_path/'runs/predict')['images']) == 3 + 3
    with pytest.raises(ValueError, match='would be overwritten'): yolox_predict(file, ['runs/predict/**/*.jpg'])


def test_links_keep_their_names(file, film, images, tmp_path):
    "As git-annex, DVC and the caches of hubs keep files"
    (tmp_path/'store').mkdir()
    film('clip.mp4', 'libx264').rename(tmp_path/'store/def456')
    (images/'a.jpg').rename(tmp_path/'store/abc123')
    for name, to in (('p.jpg', 'abc123'), ('q.jpg', 'abc123'), ('deep/clip.mp4', 'def456')):
        (images/name).symlink_to(tmp_path/'store'/to)
    run(file, images, out=tmp_path/'out')
    assert drawn(tmp_path/'out') == ['b.png.jpg', 'deep/a.jpg', 'deep/clip.mp4', 'p.jpg', 'q.jpg']
    assert len(list(read_video(tmp_path/'out/deep/clip.mp4'))) == 12
    with pytest.raises(ValueError, match='p.jpg is a link to an input, which'): run(file, images/'p.jpg', out=images)


# ---- What is assumed

def test_names_of_classes_are_those_given(file, images, tmp_path):
    for names in ('ant, bee,cow', ['ant', 'bee', 'cow']):
        run(file, images/'a.jpg', out=tmp_path/'out', names=names)
        assert [c['name'] for c in record(tmp_path/'out')['categories']] == ['ant', 'bee', 'cow']
    with pytest.raises(ValueError, match='nano.safetensors: 2 names for 3 classes: each class needs a name'):
        run(file, images/'a.jpg', out=tmp_path/'out', names='ant,bee')
    with pytest.raises(FileNotFoundError, match='classes.txt: no such file'):
        run('no such weights', images/'a.jpg', out=tmp_path/'out', names='classes.txt')


def test_classes_without_names_are_told_once(weights, images, tmp_path, capsys):
    save_weights(replace(weights, names=None), tmp_path/'nano.safetensors')
    run(tmp_path/'nano.safetensors', images, out=tmp_path/'out')
    told = 'the classes have no names, only numbers: to give them names, use --names'
    assert capsys.readouterr().out.count(told) == 1
    run(tmp_path/'nano.safetensors', images, out=tmp_path/'out', names='ant,bee,cow')
    assert 'no names' not in capsys.readouterr().out


def test_bit_depth_is_that_of_the_training_unless_given(weights, tmp_path):
    deep = replace(weights, notes=dict(bit_depth=12))
    image = Image.fromarray(np.full((30, 40), 2**12 - 1, np.uint16))
    image.save(tmp_path/'a.png')
    for source in (image, tmp_path/'a.png'):
        assert load_detector(deep, 'cpu')(source).image.unique().tolist() == [255]
        assert load_detector(deep, 'cpu', bit_depth=16)(source).image.unique().tolist() == [15]
    assert load_detector(weights, 'cpu').bit_depth == 16 and load_detector(weights, 'cpu', bit_depth=10).bit_depth == 10
    with pytest.raises(ValueError, match='bit_depth=17: must be from 8 to 16'): load_detector(weights, bit_depth=17)


def test_images_that_exceed_the_bit_depth_are_told_at_the_end(file, images, tmp_path):
    Image.fromarray(np.full((30, 40), 5000, np.uint16)).save(images/'deep.png')
    run(file, images, out=tmp_path/'out')
    with pytest.raises(SystemExit, match='(?s)^1 of the inputs.*deep.png: pixels reach 5000, but 12 bits end at 4095'):
        run(file, images, out=tmp_path/'out', bit_depth=12)
    assert len(record(tmp_path/'out')['images']) == 3
    with pytest.raises(ValueError, match='bit_depth=7: must be'): run(file, images, out=tmp_path/'out', bit_depth=7)


def test_what_is_left_out_is_told(file, film, images, tmp_path, capsys):
    "Images in other formats, frames of an animation, pages, and streams"
    run(file, images, out=tmp_path/'out')
    assert 'only the first' not in capsys.readouterr().out
    pages = [Image.new('RGB', (60, 40), color) for color in ('red', 'blue')]
    for name in ('b.gif', 'c.tif', 'd.webp'): pages[0].save(images/name, save_all=True, append_images=pages[1:])
    pages[0].save(images/'one.tif')
    pages[0].save(images/'one.webp')
    film('images/e.mkv', 'mpeg4', streams=2)
    film('images/f.mkv', 'mpeg4')
    for name in ('IMG_1.HEIC', 'deep/IMG_2.heic', 'g.txt'): (images/name).touch()
    run(file, images, out=tmp_path/'out')
    printed = ' '.join(capsys.readouterr().out.split())
    assert f'{images}: 2 images such as IMG_1.HEIC skipped: convert them to JPEG' in printed
    assert f'only the first image or stream is used of 4 files such as {images}/b.gif' in printed


def test_images_with_as_many_objects_as_possible_are_told(file, images, tmp_path, capsys):
    run(file, images, out=tmp_path/'out', conf=0., max_detections=4)
    assert '3 images with 4 objects or more: for more of them, raise --max-detections' in capsys.readouterr().out


def test_one_input_need_not_be_in_a_list(file, images, tmp_path):
    for given in (str(images), images):
        yolox_predict(file, given, out=str(tmp_path/'out'), device='cpu')
        assert len(record(tmp_path/'out')['images']) == 3


# ---- What is never overwritten

def test_inputs_are_never_overwritten(file, images):
    before = contents(images)
    with pytest.raises(ValueError, match='would be overwritten'): run(file, images, out=images)
    assert contents(images) == before


@pytest.mark.parametrize('options, made', [
    (dict(write='json'), ['detections.json']), (dict(order='uncertainty', conf=None), ['order.csv']),
    (dict(labels='yolo'), [*(f'labels/{name}.txt' for name in ('a', 'b', 'deep/a')), 'data.yaml', 'classes.txt'])])
def test_what_is_not_drawn_may_go_beside_the_images(file, images, options, made):
    before = contents(images)
    run(file, images, out=images, **options)
    assert contents(images).items() >= before.items()
    assert {*contents(images)} - {*before} == {images/name for name in made}


def test_files_of_others_are_not_overwritten(file, film, images, monkeypatch):
    "Also where an evaluation left its detections"
    film('images/deep/clip.mp4', 'libx264')
    (images/'clip.mp4').write_bytes((images/'deep/clip.mp4').read_bytes())
    (images/'detections.json').write_text('[]')
    (images/'b.png.jpg').touch()
    monkeypatch.chdir(images)
    before = contents(images)
    cases = ('deep/a.jpg', 'pictures'), ('deep/clip.mp4', 'pictures'), ('b.png', 'json'), ('b.png', 'both')
    for given, write in cases:
        with pytest.raises(ValueError, match='exists and was not written by yolox_predict'):
            run(file, given, out='.', write=write)
    assert contents(images) == before
    (images/'b.png.jpg').unlink()
    run(file, 'b.png', out='.', write='pictures')


MARK = 'written by yolox_predict'


def retitle(path):
    "Copy a video as others would, with the mark as its title"
    av = pytest.importorskip('av')
    copy = path.with_name('copy.mp4')
    with av.open(str(path)) as source, av.open(str(copy), 'w') as video:
        video.metadata['title'] = MARK
        stream = video.add_stream('libx264', rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, 'yuv420p'
        for frame in source.decode(video=0): video.mux(stream.encode(frame.reformat(format='yuv420p')))
        video.mux(stream.encode(None))
    copy.replace(path)


def test_mark_counts_only_where_it_is_written(file, film, images, tmp_path):
    "Others may paste our drawing, or mention the mark in a caption, a title or a note"
    film('images/clip.mp4', 'libx264')
    out = tmp_path/'out'
    for _ in range(2): run(file, images, out=out) # Files of ours are replaced
    collage, exif = Image.new('RGB', (90, 90)), Image.Exif()
    collage.paste(Image.open(out/'a.jpg'))
    exif[0x010e] = MARK
    collage.save(out/'a.jpg', exif=exif)
    collage.save(out/'b.png.jpg', comment=f'not {MARK}')
    collage.save(out/'deep/a.jpg')
    retitle(out/'clip.mp4')
    before = contents(out)
    for name in ('a.jpg', 'b.png', 'deep/a.jpg', 'clip.mp4'):
        (alone := tmp_path/'alone'/name).parent.mkdir(parents=True, exist_ok=True)
        alone.write_bytes((images/name).read_bytes())
        with pytest.raises(ValueError, match=f'exists and was not {MARK}'):
            run(file, alone, out=(out/name).parent, write='pictures')
    for text in ({'info': {'note': MARK}}, {'images': [], 'info': {'description': MARK}}, [MARK]):
        (out/'detections.json').write_text(json.dumps(text))
        with pytest.raises(ValueError, match=f'exists and was not {MARK}'):
            run(file, images, out=out, write='json')
        assert json.loads((out/'detections.json').read_text()) == text
    (out/'detections.json').write_bytes(before[out/'detections.json'])
    assert contents(out) == before


def test_two_inputs_are_not_drawn_as_one_file(file, tmp_path):
    for name in ('a.png', 'a.png.jpg'): Image.new('RGB', (60, 40)).save(tmp_path/name)
    with pytest.raises(ValueError, match='a.png and .*a.png.jpg would both be drawn as'):
        run(file, tmp_path, out=tmp_path/'out')


# ---- What cannot be read or drawn is told at the end

def test_unreadable_inputs_are_told_at_the_end(file, images, tmp_path):
    (images/'c.jpg').write_bytes((images/'a.jpg').read_bytes()[:-200])
    (images/'d.png').write_text('text')
    with pytest.raises(SystemExit) as end: run(file, images, tmp_path/'nowhere.jpg', out=tmp_path/'out')
    assert str(end.value).startswith('3 of the inputs could not be read or drawn:')
    for part in ('c.jpg', 'd.png', 'nowhere.jpg: no such file, and no match'): assert part in str(end.value)
    assert len(drawn(tmp_path/'out')) == 3


def test_no_readable_input_writes_nothing(file, tmp_path, capsys):
    "An empty detections.json would look like a result"
    (tmp_path/'d.png').write_text('text')
    with pytest.raises(SystemExit, match='1 of the inputs could not be read'): run(file, tmp_path, out=tmp_path/'out')
    assert not (tmp_path/'out').exists() and 'written to' not in capsys.readouterr().out


def test_link_to_an_input_is_named_and_not_its_target(file, images, tmp_path):
    (tmp_path/'out').mkdir()
    (tmp_path/'out/a.jpg').symlink_to(images/'a.jpg')
    with pytest.raises(ValueError, match='out/a.jpg is a link to an input, which would be overwritten'):
        run(file, images, out=tmp_path/'out')


def test_images_that_cannot_be_written_lose_nothing_else(file, images, tmp_path):
    "JPEG has at most 65,500 pixels a side; and a file may stand where a folder should"
    Image.new('RGB', (65501, 2)).save(images/'long.png')
    (tmp_path/'out').mkdir()
    (tmp_path/'out/deep').touch()
    with pytest.raises(SystemExit) as end: run(file, images, out=tmp_path/'out', conf=0., max_detections=1)
    assert str(end.value).startswith('2 of the inputs could not be read or drawn:')
    for name in ('deep/a.jpg', 'long.png.jpg'): assert f'out/{name} could not be written' in str(end.value)
    assert len(record(tmp_path/'out')['annotations']) == 4
    assert drawn(tmp_path/'out') == ['a.jpg', 'b.png.jpg']


def test_folder_that_may_not_be_read_is_not_empty(file, images, tmp_path, monkeypatch):
    "As root reads everything, the system is replaced"
    real = os.scandir
    def scandir(path):
        if str(path).endswith('deep'): raise PermissionError(13, 'Permission denied', str(path))
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(PermissionError, match='deep'): run(file, images, out=tmp_path/'out')


# ---- Videos

@pytest.fixture
def film(tmp_path):
    "Write a video of numbered shades with PyAV"
    av = pytest.importorskip('av')

    def sound():
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
        frame.rate = 48000
        return [frame]

    def shades(frames, side):
        for n in range(frames):
            yield av.VideoFrame.from_ndarray(np.full((side, side, 3), 20*n % 256, np.uint8), format='rgb24')

    # `kind` is a format other than that of the name
    def write(name, codec, frames=12, between=0, kind=None, side=64, streams=1):
        if codec not in av.codecs_available: pytest.skip(f'PyAV without {codec}')
        with av.open(str(tmp_path/name), 'w', format=kind) as video:
            stream = video.add_stream(codec, rate=48000 if codec == 'aac' else 10)
            if codec != 'aac': stream.width, stream.height, stream.pix_fmt = side, side, 'yuv420p'
            for _ in range(streams - 1): # Nothing is in it
                more = video.add_stream(codec, rate=10)
                more.width, more.height, more.pix_fmt = side, side, 'yuv420p'
            if between: stream.codec_context.max_b_frames = between
            for frame in (sound() if codec == 'aac' else shades(frames, side)): video.mux(stream.encode(frame))
            video.mux(stream.encode(None))
        return tmp_path/name
    return write


def test_videos_keep_their_times(file, tmp_path):
    pytest.importorskip('av')
    times = [0, .1, .25, .7]
    writer = VideoWriter(tmp_path/'clip.mp4')
    for n, seconds in enumerate(times): writer.add(Image.new('RGB', (65, 47), (60*n, 0, 255 - 60*n)), seconds)
    writer.close()
    frames = list(read_video(tmp_path/'clip.mp4'))
    assert [f.shape for f, _ in frames] == [(3, 46, 64)]*4 and [t for _, t in frames] == pytest.approx(times, abs=1e-3)
    assert frames[3][0][0].float().mean() > 150 > 60 > frames[0][0][0].float().mean()
    (tmp_path/'broken.mp4').write_text('no video')
    with pytest.raises(SystemExit, match='broken.mp4'):
        run(file, tmp_path/'clip.mp4', tmp_path/'broken.mp4', out=tmp_path/'out', conf=0., max_detections=2, batch=3)
    listed = record(tmp_path/'out')['images']
    assert [i['frame'] for i in listed] == [0, 1, 2, 3]
    assert [i['seconds'] for i in listed] == pytest.approx(times, abs=1e-3)
    assert [t for _, t in read_video(tmp_path/'out/clip.mp4')] == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize('name, codec, kind', [
    ('a.avi', 'libx264', None), ('a.avi', 'mpeg4', None), ('a.mp4', 'libx264', 'h264'), ('a.mpg', 'mpeg2video', None)])
def test_video_times_rise_whatever_the_file_says(file, film, tmp_path, name, codec, kind):
    "In AVI, frames that others look back to have the times at which they are stored; a bare stream has none"
    path = film(name, codec, between=2, kind=kind)
    times = [t for _, t in read_video(path)]
    step = .04 if kind == 'h264' else .1 # FFmpeg assumes 25 frames a second where nothing is known
    assert len(times) >= 11 and all(a < b for a, b in zip(times, times[1:]))
    assert times[-1] - times[0] == pytest.approx(step*(len(times) - 1), abs=.3)
    run(file, path, out=tmp_path/'out')
    result, = (tmp_path/'out').glob('*.mp4')
    assert len(list(read_video(result))) == len(times)


def test_video_of_sound_alone_loses_nothing_else(file, film, images, tmp_path):
    with pytest.raises(SystemExit, match='sound.mp4'):
        run(file, film('sound.mp4', 'aac'), images/'a.jpg', out=tmp_path/'out')
    assert len(record(tmp_path/'out')['images']) == 1


def test_video_that_cannot_be_drawn_is_told_once(file, film, images, tmp_path, monkeypatch):
    av = pytest.importorskip('av')
    clip = film('clip.mp4', 'libx264')
    def refuse(self, *args, **kwargs): raise av.error.ExternalError(1, 'no more licences')
    monkeypatch.setattr(VideoWriter, 'add', refuse)
    told = r'^1 of the inputs could not be read or drawn:\n.*out/clip.mp4 could not be written: .*no more licences'
    with pytest.raises(SystemExit, match=told): run(file, clip, images/'a.jpg', out=tmp_path/'out')
    assert len(record(tmp_path/'out')['images']) == 13


def test_missing_pyav_leaves_images(file, images, tmp_path, monkeypatch):
    (images/'clip.mp4').write_bytes(b'a video')
    monkeypatch.setitem(sys.modules, 'av', None)
    told = r'^1 of the inputs could not be read or drawn:\n.*clip.mp4: videos need PyAV: pip install'
    with pytest.raises(SystemExit, match=told): run(file, images, out=tmp_path/'out')
    assert len(record(tmp_path/'out')['images']) == 3


AGAIN = '^out=.*: pictures drawn there would be inputs of the next run: choose another out \\(--out\\)$'


@pytest.mark.parametrize('write, refused', [('both', True), ('pictures', True), ('json', False)])
@pytest.mark.parametrize('given', ['.', '*', '[a-z].*'])
def test_pictures_do_not_become_inputs(file, tmp_path, monkeypatch, given, write, refused):
    "A PNG would be drawn as a JPEG beside it"
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (40, 40)).save('a.png')
    with pytest.raises(ValueError, match=AGAIN) if refused else nullcontext():
        run(file, given, out=tmp_path, write=write)
    assert {p.name for p in tmp_path.iterdir()} == ({'a.png'} if refused else {'a.png', 'detections.json'})


@pytest.mark.parametrize('folders, given', [('s1 s2', ['s1', 's2']), ('s1 s2', ['s?']), ('s1 s2', ['**/*.*']),
    ('s1', ['*']), ('s1', ['./**'])])
def test_pictures_are_not_drawn_into_folders_of_inputs(file, tmp_path, monkeypatch, folders, given):
    "Also where the output folder is their parent, and where only the drawn files match a pattern"
    monkeypatch.chdir(tmp_path)
    for folder in folders.split():
        (tmp_path/folder).mkdir()
        Image.new('RGB', (40, 40)).save(f'{folder}/{folder}.png')
    with pytest.raises(ValueError, match=AGAIN): run(file, *given, out='.')
    assert {p.name for p in tmp_path.rglob('*.*')} == {f'{folder}.png' for folder in folders.split()}


def test_pictures_are_not_drawn_where_links_or_odd_folders_lead_to_inputs(file, tmp_path, monkeypatch):
    folder = tmp_path/'set [1]'
    (folder/'other').mkdir(parents=True)
    (folder/'sub').symlink_to('other', target_is_directory=True)
    for name in ('a.png', 'other/b.png'): Image.new('RGB', (40, 40)).save(folder/name)
    monkeypatch.chdir(folder)
    for given in (['*.*'], ['sub/*', 'a.png'], ['s?b/*', 'a.png']):
        with pytest.raises(ValueError, match=AGAIN): run(file, *given, out='.')
    assert {p.name for p in folder.rglob('*.*')} == {'a.png', 'b.png'}


@pytest.mark.parametrize('given, out',
    [('*', 'out'), ('**/*', 'out'), ('images/*', 'images/new'), ('images/*', 'out')])
def test_pattern_that_matches_the_output_folder_may_be_given_again(file, images, monkeypatch, given, out):
    monkeypatch.chdir(images.parent)
    found = []
    for _ in range(2):
        run(file, given, out=out)
        found.append([i['file_name'] for i in record(images.parent/out)['images']])
    assert found[0] == found[1] and len(found[0]) == 3


@pytest.mark.parametrize('given', ['a.png', '*.png', '?.png'])
def test_pictures_that_no_pattern_finds_may_go_beside_the_images(file, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (40, 40)).save('a.png')
    for _ in range(2): run(file, given, out='.', write='pictures')
    assert {p.name for p in tmp_path.iterdir()} == {'a.png', 'a.png.jpg'}


@pytest.mark.parametrize('sent, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_keeps_what_was_found(sent, status, file, film, tmp_path, heeded):
    "Also a video that is half done"
    path, out = film('long.mp4', 'libx264', frames=3000), tmp_path/'out'
    process = subprocess.Popen([COMMAND, file, path, '--out', out, '--device', 'cpu', '--batch', '2'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(3000):
        if [*out.glob('long.mp4*')] or process.poll() is not None: break
        time.sleep(.02)
    time.sleep(.3)
    process.send_signal(sent)
    errors = process.communicate(timeout=120)[1]
    assert ('interrupted' in errors) == (sent == signal.SIGINT) and process.returncode == status, errors
    found = record(out)['images']
    assert {p.name for p in out.iterdir()} == {'long.mp4', 'detections.json'}
    assert 0 < len(found) < 3000 and abs(len(list(read_video(out/'long.mp4'))) - len(found)) <= 1


# ---- Which detections are kept

@pytest.fixture
def tuned(weights, tmp_path):
    "Writes weights with thresholds; scores of cats are .44, of dogs .64 and of owls .53"
    state = dict(weights.state)
    for level, (objectness, score) in enumerate([(0., 2.), (1., 2.), (.4, 2.)]):
        state[f'bbox_head.multi_level_conv_obj.{level}.bias'] = torch.tensor([objectness])
        state[f'bbox_head.multi_level_conv_cls.{level}.bias'] = score*(torch.arange(3) == level)
    def write(**thresholds):
        notes = dict(thresholds=dict(split='val', **thresholds)) if thresholds else {}
        save_weights(replace(weights, state=state, notes=notes), tmp_path/'tuned.safetensors')
        return str(tmp_path/'tuned.safetensors')
    return write


def names_found(file, images, out, **options):
    run(file, images/'a.jpg', out=out, write='json', **options)
    coco = record(out)
    return {coco['categories'][a['category_id']]['name'] for a in coco['annotations']}


def test_scores_of_the_weights_are_used_unless_given(tuned, images, tmp_path, capsys):
    file = tuned(score=.5, classes=[.5]*3)
    assert names_found(file, images, tmp_path/'out') == {'dog', 'owl'}
    assert 'keeping boxes of score > 0.5, which had the best F1 on val; --conf overrides' in capsys.readouterr().out
    assert names_found(file, images, tmp_path/'out', conf=.6) == {'dog'}
    assert names_found(file, images, tmp_path/'out', conf=0.) == {'cat', 'dog', 'owl'} # Zero is given, too
    assert names_found(tuned(), images, tmp_path/'out') == {'cat', 'dog', 'owl'} # Above .25
    assert 'best F1' not in capsys.readouterr().out


def test_scores_by_class_and_classes_that_are_kept(tuned, images, tmp_path, capsys):
    file = tuned(score=.5, classes=[.4, .7, .5])
    assert names_found(file, images, tmp_path/'out') == {'cat', 'owl'}
    assert 'keeping boxes of score > 0.4 to 0.7, by class' in capsys.readouterr().out
    assert names_found(file, images, tmp_path/'out', classes='cat,dog') == {'cat'}
    assert names_found(file, images, tmp_path/'out', classes='cat,dog', conf=.3) == {'cat', 'dog'}
    detector = load_detector(file, 'cpu')
    assert {*detector(images/'a.jpg', classes=['owl']).labels.tolist()} == {2}
    assert repr(detector).endswith('score > 0.4 to 0.7, by class, which had the best F1 on val')


def test_unknown_class_stops_before_anything_is_written(file, images, tmp_path):
    with pytest.raises(ValueError, match=r"'cats' \(similar: cat\)"):
        run(file, images/'a.jpg', out=tmp_path/'out', classes='cats')
    assert not (tmp_path/'out').exists()
