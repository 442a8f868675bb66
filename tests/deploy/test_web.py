"The folder of `yolox_export --format web`; tests_web opens it in a browser."
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import decisive_model

from cjm_yolox_pytorch.deploy import web
from cjm_yolox_pytorch.deploy.export import yolox_export
from cjm_yolox_pytorch.deploy.web import PAGE, export_web, file_hash
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.files.checkpoints import Weights, save_weights
from cjm_yolox_pytorch.model import NORM_STATS

pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
ROOT = Path(__file__).resolve().parents[2]
NAMES = ['cat', '</script>', 'ümlaut']


@pytest.fixture(scope='module')
def weights():
    stats = NORM_STATS['yolox_nano']
    return Weights(decisive_model(3).state_dict(), 'yolox_nano', 3, **stats, names=NAMES, size=90)


@pytest.fixture(autouse=True)
def written_once(monkeypatch, weights):
    "Most of the time goes into ONNX: all tests share one file"
    write = web._write_model
    def write_once(given, path):
        if not hasattr(written_once, 'result'): written_once.result = write(weights, path), path.read_bytes()
        result, data = written_once.result
        path.write_bytes(data)
        return result
    monkeypatch.setattr(web, '_write_model', write_once)


def about_page(page):
    "The JSON of a page, read as a browser does: up to the first </script>"
    text = (page/'index.html').read_text(encoding='utf-8')
    return json.loads(text.partition('<script id="about" type="application/json">')[2].partition('</script>')[0])


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    "What `npm pack` gives, with other contents"
    folder = tmp_path_factory.mktemp('npm')/'package'
    (folder/'dist').mkdir(parents=True)
    for name in web._RUNTIME_FILES: (folder/'dist'/name).write_text(f'this is {name}')
    (folder/'dist/unused.js').write_text('not needed')
    return folder


def test_folder_holds_page_script_and_network(weights, tmp_path):
    assert export_web(weights, tmp_path/'page') < .01
    assert sorted(p.name for p in (tmp_path/'page').iterdir()) == ['detector.js', 'index.html', 'model.onnx']
    assert (tmp_path/'page/detector.js').read_bytes() == (PAGE/'detector.js').read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ['page'] # Nothing beside it


def test_page_knows_what_the_metadata_say(weights, tmp_path):
    export_web(replace(weights, notes=dict(thresholds=dict(score=.4, classes=[.4, .5, .6]))), tmp_path/'page')
    about, detector = about_page(tmp_path/'page'), load_detector(tmp_path/'page/model.onnx')
    assert (about['names'], about['size'], about['conf']) == (NAMES, 96, [.4, .5, .6])
    assert detector.names == NAMES and detector.model.canvas_hw == (96, 96)
    assert (about['iou'], about['max_detections']) == (.65, 300) # Those of yolox_predict


def test_weights_without_names_and_thresholds(weights, tmp_path):
    export_web(replace(weights, names=None), tmp_path/'page')
    assert about_page(tmp_path/'page')['names'] is None and about_page(tmp_path/'page')['conf'] == .25


def test_expected_means_are_those_of_the_file(weights, tmp_path):
    export_web(weights, tmp_path/'page')
    side = np.arange(3*96*96).reshape(1, 3, 96, 96)
    pattern = np.round(127.5 + 127.5*np.sin(side/50)).astype(np.float32)
    rows = onnxruntime.InferenceSession(tmp_path/'page/model.onnx').run(None, {'images': pattern})[0][0]
    for column, mean in about_page(tmp_path/'page')['check']:
        assert rows[:, column].mean() == pytest.approx(mean, rel=1e-4)


def test_public_runtime_has_a_version_and_hashes(weights, tmp_path):
    export_web(weights, tmp_path/'page')
    runtime = about_page(tmp_path/'page')['runtime']
    assert runtime['folder'] == f'https://cdn.jsdelivr.net/npm/onnxruntime-web@{web.ONNXRUNTIME_WEB}/dist/'
    for backend in ('webgpu', 'wasm'):
        for name, integrity in runtime[backend].values():
            assert re.fullmatch(r'sha384-[A-Za-z0-9+/]{64}', integrity) and name.startswith('ort')
    page = (tmp_path/'page/index.html').read_text(encoding='utf-8').partition('<script id="about"')
    assert 'http' not in page[0] + page[2].partition('</script>')[2] # Everything else is in the folder


def test_hashes_are_those_of_the_npm_package():
    dist = Path(os.environ.get('ONNXRUNTIME_WEB', ROOT/'.venv-web/package'))/'dist'
    if not dist.exists(): pytest.skip('needs ONNX Runtime Web: make .venv-web/package')
    assert web._HASHES == {name: file_hash(dist/name) for name in web._RUNTIME_FILES}


@pytest.mark.parametrize('inside', ['', 'dist'])
def test_runtime_is_copied(weights, package, tmp_path, inside):
    export_web(weights, tmp_path/'page', package/inside)
    copies, runtime = tmp_path/'page/onnxruntime-web', about_page(tmp_path/'page')['runtime']
    assert {p.name for p in copies.iterdir()} == {*web._RUNTIME_FILES} and runtime['folder'] == 'onnxruntime-web/'
    for backend in ('webgpu', 'wasm'):
        for name, integrity in runtime[backend].values(): assert integrity == file_hash(copies/name)


def test_hash_is_that_of_the_standard(tmp_path):
    "The example of https://www.w3.org/TR/SRI/"
    (tmp_path/'hello.js').write_bytes(b"alert('Hello, world.');")
    expected = 'sha384-H8BRh8j48O9oYatfu5AZzq6A9RINhZO5H16dQZngK7T62em8MUt1FLm52t+eX6xO'
    assert file_hash(tmp_path/'hello.js') == expected


def test_existing_folders_are_left(weights, tmp_path):
    (tmp_path/'page').mkdir()
    (tmp_path/'page/index.html').write_text('mine')
    (tmp_path/'file').write_text('mine')
    for name in ('page', 'file'):
        with pytest.raises(FileExistsError, match='exists: choose another folder with --out, or remove it'):
            export_web(weights, tmp_path/name)
    assert (tmp_path/'page/index.html').read_text() == (tmp_path/'file').read_text() == 'mine'
    assert len([*tmp_path.rglob('*')]) == 3


@pytest.mark.parametrize('fails', ['_write_model', '_copy_runtime', '_fill_in'])
def test_failure_leaves_nothing(weights, package, tmp_path, monkeypatch, fails):
    def fail(*args): raise RuntimeError('no more room')
    monkeypatch.setattr(web, fails, fail)
    with pytest.raises(RuntimeError, match='no more room'): export_web(weights, tmp_path/'page', package)
    assert not [*tmp_path.iterdir()]


def test_incomplete_runtime(weights, package, tmp_path):
    (tmp_path/'dist').mkdir()
    for folder in (tmp_path, tmp_path/'nowhere'):
        with pytest.raises(FileNotFoundError, match='which is part of ONNX Runtime Web: run npm pack onnxruntime-web@'):
            export_web(weights, tmp_path/'page', folder)
    assert not (tmp_path/'page').exists()


def test_names_cannot_end_the_json():
    template = '<script id="about" type="application/json">{}</script>'
    text = web._fill_in(template, dict(names=['</script><script>alert(1)</script>', '<!--']))
    assert text.count('</script>') == 1 and '<!--' not in text
    assert json.loads(text.partition('>')[2].partition('</script>')[0])['names'][1] == '<!--'


def test_page_loads_nothing_but_its_script():
    html = (PAGE/'index.html').read_text(encoding='utf-8')
    assert re.findall(r'(?:src|href)="([^"]*)"', html) == ['data:,', 'detector.js'] and 'lang="en"' in html
    ids = {*re.findall(r'id="([\w-]+)"', html)}
    script = (PAGE/'detector.js').read_text(encoding='utf-8')
    assert {*re.findall(r"\$\('([\w-]+)'\)", script)} <= ids
    assert len(script.splitlines()) < 300 and max(map(len, script.splitlines())) <= 120


PAGE_WITHOUT_BROWSER = """
const wait = () => new Promise(resolve => setTimeout(resolve, 20)), elements = {}, grants = [], tracks = []
const nothing = new Proxy(() => nothing, {get: (_, name) => name === Symbol.toPrimitive ? () => 1 : nothing})
const pixels = {data: new Uint8ClampedArray(64).fill(9), width: 4, height: 4}
const context = new Proxy({}, {get: (_, name) => name === 'getImageData' ? () => pixels : nothing, set: () => true})
const element = () => ({style: {}, getContext: () => context, play: async () => {}, videoWidth: 4, videoHeight: 4,
  replaceChildren() {}, textContent: '{"size": 32, "conf": 0.3}'})
globalThis.document = {getElementById: id => elements[id] ??= element(), createElement: element}
Object.defineProperty(globalThis, 'navigator', {value: {mediaDevices: {
  getUserMedia: () => new Promise(resolve => grants.push(resolve))}}})
Object.assign(globalThis, {location: {protocol: 'file:', search: ''}, addEventListener() {},
  createImageBitmap: async () => ({width: 4, height: 4})})
const code = require('fs').readFileSync(process.argv[1], 'utf8').replace('= load()', '= Promise.resolve()')
const grant = () => {
  const track = {stop() { this.stopped = true }}
  tracks.push(track)
  grants.at(-1)({getTracks: () => [track], getVideoTracks: () => [track]})
}
new Function('step', code + `
network = {backend: 'wasm'}
run = async () => new Float32Array(0)
step($('camera').onclick, choose, () => shown = null)`)(async (click, choose, forget) => {
  const report = {}
  await wait()
  STEPS
  console.log(JSON.stringify({...report, asked: grants.length, stopped: tracks.map(t => !!t.stopped),
    status: elements.status.textContent, problem: elements.problem.textContent, button: elements.camera.textContent}))
  process.exit()
})"""


def run_page(steps):
    "What the page says after `steps` in JavaScript, with stand-ins for the browser"
    if not shutil.which('node'): pytest.skip('needs node')
    code = PAGE_WITHOUT_BROWSER.replace('STEPS', steps)
    done = subprocess.run(['node', '-e', code, PAGE/'detector.js'], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_double_click_starts_the_camera_once():
    said = run_page('click(); click(); await wait(); grant(); await wait(); click(); await wait()')
    assert said['asked'] == 1 and said['stopped'] == [True] and said['button'] == 'Use the camera'


def test_camera_starts_again_after_it_was_stopped():
    start = 'click(); await wait(); grant(); await wait(); '
    said = run_page(f'{start} click(); {start}')
    assert said['asked'] == 2 and said['stopped'] == [True, False] and said['button'] == 'Stop the camera'


def test_photo_is_shown_though_the_browser_asks_for_the_camera():
    said = run_page("click(); await wait(); choose({name: 'cat.png'}); grant(); await wait()")
    assert said['stopped'] == [True] and said['button'] == 'Use the camera' and 'Nothing found' in said['status']


def test_picture_too_large_for_the_browser_is_not_an_empty_one():
    "Phones draw nothing on a canvas of more pixels than they can hold, and say nothing"
    said = run_page("pixels.data.fill(0); choose({name: 'cat.png'}); await wait()")
    assert said['problem'] == 'This browser shows nothing of the picture: choose a smaller one.' and not said['status']


# ---- The command

@pytest.fixture
def file(weights, tmp_path):
    save_weights(weights, tmp_path/'nano.safetensors')
    return tmp_path/'nano.safetensors'


def test_command_writes_beside_the_weights_or_where_it_is_told(file, tmp_path, capsys):
    yolox_export(str(file), format='web')
    yolox_export(str(file), format='web', out=str(tmp_path/'new/page'), names='one,two,three')
    assert f'python -m http.server --directory {tmp_path/"nano.web"}' in capsys.readouterr().out
    assert about_page(tmp_path/'nano.web')['names'] == NAMES
    assert about_page(tmp_path/'new/page')['names'] == ['one', 'two', 'three']
    with pytest.raises(FileExistsError, match='exists: choose another folder'): yolox_export(str(file), format='web')


@pytest.mark.parametrize('option', ['raw', 'camera', 'static', 'suppress', 'half', 'int8'])
def test_command_refuses_what_a_page_cannot_use(file, tmp_path, option):
    with pytest.raises(ValueError, match=f'{option} cannot be chosen with --format web'):
        yolox_export(str(file), format='web', **{option: True})
    assert [*tmp_path.iterdir()] == [file]


def test_command_refuses_a_runtime_for_other_formats(file, package):
    with pytest.raises(ValueError, match=r'runtime has no effect without format=web \(--format web\)'):
        yolox_export(str(file), runtime=str(package))


@pytest.mark.parametrize('sent, status', [('SIGTERM', 143), ('SIGHUP', 129), ('SIGINT', 130)])
@pytest.mark.parametrize('step', ['_write_model', '_fill_in'])
def test_stopped_command_leaves_nothing(file, tmp_path, monkeypatch, heeded, step, sent, status):
    if not hasattr(signal, sent): pytest.skip(f'no {sent} here')
    def stop(*args):
        assert len([*tmp_path.glob('nano.web*.partial')]) == 1
        signal.raise_signal(getattr(signal, sent))
        time.sleep(9)
    monkeypatch.setattr(web, step, stop)
    monkeypatch.setattr(sys, 'argv', ['yolox_export', str(file), '--format', 'web', '--out', str(tmp_path/'nano.web')])
    with pytest.raises(SystemExit) as end: yolox_export()
    assert end.value.code == status and [*tmp_path.iterdir()] == [file]


def test_page_in_the_site_loads_the_same_runtime():
    about = json.loads((ROOT/'docs/try/about.json').read_text(encoding='utf-8'))
    assert about['runtime'] == web._describe_runtime(web._CDN, web._HASHES)
    assert about['model'] == 'model.onnx' and (ROOT/'docs/try/model.onnx').stat().st_size < 2**20
