"The detector and `yolox_predict`, on odd pictures, folders and videos."
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.checkpoints import Weights, save_weights
from cjm_yolox_pytorch.inference import VideoWriter, load_detector, predict, read_video, yolox_predict
from cjm_yolox_pytorch.model import build_model


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
    found = load_detector(weights, 'cpu')(Image.new('RGB', size, 'red'), min_score=0, max_detections=5)
    assert len(found) == 5 and found.boxes.min() >= 0 and (found.boxes <= torch.tensor([size[0], size[1]]*2)).all()
    assert found.picture().size == size


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I', 'I;16', 'F'])
def test_pictures_in_other_modes(weights, mode, tmp_path):
    picture = Image.fromarray(np.zeros((30, 40), np.uint16)) if mode == 'I;16' else Image.new('L', (40, 30)).convert(mode)
    assert load_detector(weights, 'cpu')(picture, min_score=0).image.shape == (3, 30, 40)


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
    assert str(end.value).startswith('3 of the inputs could not be read:')
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


def test_supervision(weights):
    pytest.importorskip('supervision')
    found = load_detector(weights, 'cpu')(np.zeros((40, 60, 3), np.uint8), min_score=0, max_detections=3)
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
