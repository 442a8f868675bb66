"Exported pages in a real browser: make test-web"
import json
import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.data.shapes import SHAPES, draw_shapes
from cjm_yolox_pytorch.deploy import web
from cjm_yolox_pytorch.deploy.web import export_web
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights
from cjm_yolox_pytorch.files.images import read_image
from cjm_yolox_pytorch.files.letterbox import letterbox
from cjm_yolox_pytorch.model import NORM_STATS, build_model

playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright: make .venv/installed-browser')
pytest.importorskip('onnxruntime', reason="needs the extra `export`: pip install 'cjm-yolox-pytorch[export]'")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent/'shared'
BROWSER = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome', 'chrome'])), None)
RUNTIME = Path(os.environ.get('ONNXRUNTIME_WEB', ROOT/'.venv-web/package'))
NEEDED = {'a browser: apt-get install chromium, for example': BROWSER,
          'ONNX Runtime Web: make .venv-web/package': RUNTIME.exists()}
for what, there in NEEDED.items():
    if not there and not os.environ.get('CI'): pytest.skip(f'needs {what}', allow_module_level=True)
CAMERA = '--use-fake-device-for-media-stream'
SOFTWARE_GPU = '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'


@pytest.fixture(scope='module')
def chromium():
    with playwright.sync_playwright() as p:
        opened = {}
        def launch(*flags):
            options = dict(executable_path=BROWSER, args=['--no-sandbox', *flags])
            if flags not in opened: opened[flags] = p.chromium.launch(**options)
            return opened[flags]
        yield launch
        for browser in opened.values(): browser.close()


class Handler(SimpleHTTPRequestHandler):
    headers_to_send = {}
    def log_message(self, *args): pass
    def end_headers(self):
        for name, value in self.headers_to_send.items(): self.send_header(name, value)
        super().end_headers()


class Isolated(Handler): # Which WebAssembly needs for more than one thread
    headers_to_send = {'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp'}


@pytest.fixture(scope='module')
def serve():
    servers = []
    def start(folder, handler=Handler):
        servers.append(ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=folder)))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}/index.html'
    yield start
    for server in servers: server.shutdown()


def public_server(route):
    "ONNX Runtime as the public server is to give it, from the npm package"
    name = route.request.url.removeprefix(web._CDN)
    route.fulfill(path=RUNTIME/'dist'/name, headers={'Access-Control-Allow-Origin': '*'})


@pytest.fixture
def open_tab(chromium):
    "Open a page; in the end nothing may have gone wrong in it, and nothing been asked of strangers"
    contexts, wrong = [], []
    def start(address, flags=(), loaded=True, cdn=public_server, **options):
        contexts.append(chromium(*flags).new_context(**options))
        tab = contexts[-1].new_page()
        tab.on('pageerror', lambda error: wrong.append(str(error)))
        local = address.rpartition('/')[0], 'data:', 'blob:', web._CDN
        tab.on('request', lambda r: r.url.startswith(local) or wrong.append(f'requested {r.url}'))
        tab.route(f'{web._CDN}*', cdn)
        tab.goto(address)
        if loaded: wait_for(tab, 'Ready, with')
        return tab
    yield start
    for context in contexts: context.close()
    assert not wrong, wrong


def wait_for(tab, text):
    said = "['status', 'problem'].map(id => document.getElementById(id).textContent).join('')"
    tab.wait_for_function(f'text => {said}.match(text)', arg=text)
    return tab.evaluate(said)


def look_at(tab, file):
    "What the page finds in a photo: boxes, scores and labels"
    tab.evaluate("say('')")
    tab.set_input_files('#file', file)
    wait_for(tab, r' ms with ')
    return found(tab)


def found(tab):
    rows = tab.evaluate('''suppress(shown.found).map(d =>
        [...toImage(d.box, reader.width, reader.height), d.score, d.label])''')
    rows = np.array(rows).reshape(-1, 6)
    return rows[:, :4], rows[:, 4], rows[:, 5].astype(int)


def predicted(weights, files, out):
    "The same by `yolox_predict`, by name of the file"
    files, folder = [os.fspath(f) for f in files], os.fspath(out/'found')
    yolox_predict(os.fspath(weights), files, out=folder, write='json', device='cpu')
    coco = json.loads((out/'found/detections.json').read_text())
    def rows(image): return [a for a in coco['annotations'] if a['image_id'] == image['id']]
    def arrays(rows):
        xywh = np.array([a['bbox'] for a in rows]).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        return boxes, np.array([a['score'] for a in rows]), np.array([a['category_id'] for a in rows], int)
    return {Path(image['file_name']).name: arrays(rows(image)) for image in coco['images']}


def assert_same(got, want, pixels=1, score=.01):
    "The same objects: each has its counterpart, but for those whose score is that of the threshold"
    assert len(got[1]) == len(want[1])
    for box, p, label in zip(*got):
        same = (abs(want[0] - box).max(1) <= pixels) & (abs(want[1] - p) <= score) & (want[2] == label)
        assert same.any(), (box, p, label)


@pytest.fixture(scope='module')
def photos():
    folder = SHARED/'data/coco_ccby/images'
    if not folder.exists(): pytest.skip('needs photos of the developers (../shared/data/coco_ccby)')
    return sorted(folder.glob('*.jpg'))[:5]


@pytest.fixture(scope='module')
def nano():
    file = SHARED/'weights/yolox_nano_coco.pth'
    if not file.exists(): pytest.skip('needs weights of the developers (../shared/weights)')
    return file


@pytest.fixture(scope='module')
def coco_page(nano, tmp_path_factory):
    "Real weights, with ONNX Runtime from the public server"
    page = tmp_path_factory.mktemp('coco')/'page'
    export_web(load_weights(nano), page)
    return page


@pytest.fixture(scope='module')
def small_page(tmp_path_factory):
    "Weights that find something everywhere, with ONNX Runtime in the folder"
    torch.manual_seed(0)
    model = build_model('yolox_nano', len(SHAPES), pretrained=False)
    for conv in (*model.bbox_head.multi_level_conv_obj, *model.bbox_head.multi_level_conv_cls):
        torch.nn.init.normal_(conv.weight, std=.3)
        torch.nn.init.constant_(conv.bias, .5)
    names = ['disc', '</script><b>triangle</b>', 'ünï "quoted"', 'star', 'cross']
    notes = dict(thresholds=dict(score=.3, classes=[.3, .3, .3, .3, .7]))
    about = dict(**NORM_STATS['yolox_nano'], names=names, size=96, notes=notes)
    weights = Weights(model.state_dict(), 'yolox_nano', len(names), **about)
    page = tmp_path_factory.mktemp('small')/'page'
    export_web(weights, page, RUNTIME)
    return page


@pytest.fixture(scope='module')
def drawing(tmp_path_factory):
    file = tmp_path_factory.mktemp('drawing')/'shapes.png'
    Image.fromarray(draw_shapes(np.random.default_rng(1), 150)[0]).save(file)
    return file


@pytest.fixture
def small(serve, small_page): return serve(small_page)


# The same as yolox_predict

def test_five_photos_give_the_detections_of_yolox_predict(open_tab, serve, coco_page, nano, photos, tmp_path):
    tab, expected = open_tab(serve(coco_page)), predicted(nano, photos, tmp_path)
    for photo in photos: assert_same(look_at(tab, photo), expected[photo.name])
    assert sum(len(scores) for _, scores, _ in expected.values()) > 20


@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_are_turned_as_exif_says(open_tab, serve, coco_page, nano, photos, tmp_path, orientation):
    exif, turned = Image.Exif(), tmp_path/'turned.jpg'
    exif[0x0112] = orientation
    Image.open(photos[0]).save(turned, exif=exif, quality=95)
    assert_same(look_at(open_tab(serve(coco_page)), turned), predicted(nano, [turned], tmp_path)['turned.jpg'])


SIZES = [(640, 480), (427, 640), (416, 416), (50, 31), (1, 1), (3000, 7), (5, 900), (832, 208)]


@pytest.mark.parametrize('size', SIZES)
def test_pixels_are_those_of_letterbox(open_tab, small, tmp_path, size):
    "Bit for bit, however large the image is"
    file = tmp_path/'noise.png'
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    tab = open_tab(small)
    look_at(tab, file)
    for side in (96, 416):
        planes = tab.evaluate('''side => {
            about.size = side
            return [...letterbox(reader.getContext('2d').getImageData(0, 0, reader.width, reader.height))]}''', side)
        expected = letterbox(read_image(file), (side, side)).numpy()
        np.testing.assert_array_equal(np.array(planes).reshape(3, side, side), expected)


def test_suppression_is_that_of_nms(open_tab, small):
    from cjm_yolox_pytorch.inference import nms
    rng, tab = np.random.default_rng(0), open_tab(small)
    corners = rng.uniform(0, 80, (400, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (400, 2)).astype(np.float32)], 1)
    labels, best = rng.integers(0, 5, 400), rng.uniform(0, 1, 400).astype(np.float32)
    scores = np.zeros((400, 5), np.float32)
    scores[np.arange(400), labels] = best
    rows = [dict(box=b, label=n, score=s) for b, n, s in zip(boxes.tolist(), labels.tolist(), best.tolist())]
    kept = tab.evaluate('rows => suppress(rows)', rows)
    expected, p, _ = nms(torch.from_numpy(boxes), torch.from_numpy(scores), conf=[.3, .3, .3, .3, .7])
    np.testing.assert_allclose([k['score'] for k in kept], p.numpy())
    np.testing.assert_allclose([k['box'] for k in kept], expected.numpy())


def test_webgpu_computes_the_same(open_tab, small, drawing):
    tab = open_tab(small)
    plain = look_at(tab, drawing)
    tab = open_tab(f'{small}?backend=webgpu', SOFTWARE_GPU, loaded=False)
    if 'WebAssembly' in wait_for(tab, 'Ready, with'): pytest.skip('this browser has no WebGPU in software')
    assert_same(look_at(tab, drawing), plain)
    assert 'WebGPU' in tab.locator('#status').text_content()


def test_webassembly_where_webgpu_fails(open_tab, small):
    assert 'WebAssembly' in wait_for(open_tab(f'{small}?backend=webgpu', loaded=False), 'Ready, with')


def test_several_threads_compute_the_same(open_tab, serve, small_page, small, drawing):
    tab = open_tab(serve(small_page, Isolated))
    assert tab.evaluate('crossOriginIsolated')
    assert_same(look_at(tab, drawing), look_at(open_tab(small), drawing))


# Where ONNX Runtime comes from

def test_files_with_another_hash_are_refused(open_tab, serve, small_page, coco_page):
    def changed(route): route.fulfill(body='alert(1)', headers={'Access-Control-Allow-Origin': '*'})
    tab = open_tab(serve(coco_page), cdn=changed, loaded=False)
    assert 'ONNX Runtime could not be loaded from https://cdn.jsdelivr.net/' in wait_for(tab, 'could not be')


def test_without_a_connection(open_tab, serve, coco_page, drawing):
    tab = open_tab(serve(coco_page), cdn=lambda route: route.abort(), loaded=False)
    message = wait_for(tab, 'check the connection')
    tab.set_input_files('#file', drawing) # It is said again, not forgotten
    assert wait_for(tab, 'check the connection') == message


# What goes wrong is said

def test_opened_as_a_file(open_tab, small_page):
    tab = open_tab((small_page/'index.html').as_uri(), loaded=False)
    assert 'python -m http.server' in wait_for(tab, 'opened as a file')


def copied(page, tmp_path, change=None):
    shutil.copytree(page, tmp_path/'copy')
    index = tmp_path/'copy/index.html'
    if change: index.write_text(re.sub(*change, index.read_text(encoding='utf-8')), encoding='utf-8')
    return tmp_path/'copy'


def test_without_the_network(open_tab, serve, small_page, tmp_path):
    page = copied(small_page, tmp_path)
    (page/'model.onnx').unlink()
    tab = open_tab(serve(page), loaded=False)
    assert re.search(r'The network was not found: http\S+/model.onnx \(404\)', wait_for(tab, 'not found'))


def test_a_browser_that_computes_wrongly(open_tab, serve, small_page, tmp_path):
    page = copied(small_page, tmp_path, (r'"check": \[\s*\[\s*0,\s*[\d.e-]+', '"check": [[0, 77'))
    tab = open_tab(serve(page), loaded=False)
    assert 'WebAssembly does not compute here what the exported network does' in wait_for(tab, 'compute')


def test_files_that_are_no_images(open_tab, small, drawing, tmp_path):
    (tmp_path/'notes.txt').write_text('not an image')
    tab = open_tab(small)
    tab.set_input_files('#file', tmp_path/'notes.txt')
    assert '“notes.txt” is not an image that this browser can read' in wait_for(tab, 'not an image')
    assert len(look_at(tab, drawing)[1]) and not tab.locator('#problem').text_content() # And the page goes on


def test_camera_problems(open_tab, small):
    tab = open_tab(small, [CAMERA])
    tab.get_by_role('button', name='Use the camera').click()
    assert 'The camera was not permitted' in wait_for(tab, 'camera')
    tab = open_tab(small, permissions=['camera'])
    tab.get_by_role('button', name='Use the camera').click()
    assert 'No camera was found' in wait_for(tab, 'camera')


# Using it

def test_camera(open_tab, small, drawing):
    tab = open_tab(small, [CAMERA], permissions=['camera'])
    tab.get_by_role('button', name='Use the camera').click()
    wait_for(tab, ' ms with ')
    assert tab.locator('#status').get_attribute('aria-live') == 'off'
    first = tab.evaluate('shown')
    tab.wait_for_function('old => shown && shown.ms !== old', arg=first and first['ms']) # It goes on
    tab.get_by_role('button', name='Stop the camera').click()
    assert tab.get_by_role('button', name='Use the camera').is_visible()
    assert tab.locator('#status').get_attribute('aria-live') == 'polite'
    tab.get_by_role('button', name='Use the camera').click() # A photo ends it, too
    tab.get_by_role('button', name='Stop the camera').wait_for()
    tab.set_input_files('#file', drawing)
    tab.wait_for_function('reader.width === 150 && shown')
    assert not tab.evaluate('stream') and tab.get_by_role('button', name='Use the camera').is_visible()


def test_keyboard(open_tab, small, drawing):
    tab = open_tab(small)
    tab.on('filechooser', lambda chooser: chooser.set_files(drawing)) # Early, since it takes effect after a while
    tab.keyboard.press('Tab')
    assert tab.evaluate('document.activeElement.id') == 'file'
    assert tab.evaluate('getComputedStyle(document.activeElement.parentElement).outlineStyle') == 'solid'
    tab.keyboard.press('Enter')
    wait_for(tab, ' ms with ')
    tab.keyboard.press('Tab')
    assert tab.evaluate('document.activeElement.id') == 'camera'
    tab.keyboard.press('Tab')
    assert tab.evaluate('document.activeElement.id') == 'score'
    n = tab.locator('#found li').count()
    assert n
    tab.keyboard.press('End')
    assert tab.locator('#score-text').text_content() == '0.99' and tab.locator('#found li').count() < n
    tab.keyboard.press('ArrowLeft')
    assert tab.locator('#score-text').text_content() == '0.98'


def test_slider_starts_with_the_thresholds_of_the_training(open_tab, small, drawing):
    tab = open_tab(small)
    assert tab.get_by_label('Minimum score').input_value() == '0.3'
    assert tab.locator('#score-text').text_content() == '0.30 to 0.70, by class'
    _, scores, labels = look_at(tab, drawing)
    assert len(scores) and (scores > np.where(labels == 4, .7, .3)).all()
    assert tab.evaluate('[0, 4].map(leastScore)') == pytest.approx([.3, .7])
    tab.get_by_label('Minimum score').fill('0.35')
    assert (found(tab)[1] > .35).all() and tab.evaluate('[0, 4].map(leastScore)') == pytest.approx([.35, .35])


def test_names_are_text(open_tab, small, drawing):
    tab = open_tab(small)
    look_at(tab, drawing)
    assert tab.evaluate('about.names[1]') == '</script><b>triangle</b>'
    assert not tab.locator('b').count() and 'ünï "quoted"' in tab.evaluate('about.names')


def test_dropped_photos(open_tab, small, drawing):
    tab = open_tab(small)
    tab.evaluate('''async ([bytes]) => {
        const data = new DataTransfer()
        data.items.add(new File([new Uint8Array(bytes)], 'dropped.png', {type: 'image/png'}))
        document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))
    }''', [list(drawing.read_bytes())])
    wait_for(tab, ' ms with ')
    assert tab.evaluate('reader.width') == 150


def test_for_screen_readers(open_tab, small, drawing):
    tab = open_tab(small)
    look_at(tab, drawing)
    roles = dict(button='Use the camera', slider='Minimum score', img='The picture, with boxes around what was found')
    for role, name in roles.items(): assert tab.get_by_role(role, name=name).count() == 1
    assert tab.get_by_label('Choose a photo').count() == 1
    assert tab.get_by_role('status').count() == 1 and tab.get_by_role('list', name='What was found, best first').count()
    assert tab.locator('html').get_attribute('lang') == 'en'


@pytest.mark.parametrize('width', [320, 390, 1440])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_phones_and_dark_mode(open_tab, small, drawing, width, scheme, tmp_path):
    tab = open_tab(small, viewport=dict(width=width, height=844), color_scheme=scheme)
    look_at(tab, drawing)
    assert tab.evaluate('document.documentElement.scrollWidth') <= width
    def light(name):
        color = tab.evaluate(f'getComputedStyle(document.body).{name}')
        return sum(map(int, re.findall(r'\d+', color)[:3]))
    dark, bright = sorted([light('backgroundColor'), light('color')])
    assert dark < 150 < 600 < bright and (light('color') == bright) == (scheme == 'dark')
    for button in tab.locator('.button').all(): assert button.bounding_box()['height'] >= 40 # For fingers
