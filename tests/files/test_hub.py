"A repository on a server of this machine that speaks the few endpoints of Hugging Face's hub."
import base64
import hashlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import torch

from cjm_yolox_pytorch.detection.detector import Detector, load_detector
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.files.hub import find_pretrained, write_pretrained
from cjm_yolox_pytorch.files.model_card import model_card
from cjm_yolox_pytorch.model import build_model

NAMES = ['cat', 'dog', 'barn | owl']


@pytest.fixture(scope='module')
def weights():
    torch.manual_seed(0)
    state = build_model('yolox_nano', 3, pretrained=False).state_dict()
    thresholds = dict(score=.4, classes=[.4, .5, .4], split='val', fingerprint='ab')
    notes = dict(AP=.5, AP50=.75, epoch=7, training='train', validation='val', fingerprint='cd', thresholds=thresholds)
    return Weights(state, 'yolox_nano', 3, (0., 0., 0.), (1., 1., 1.), NAMES, 64, notes=notes)


class Hub(http.server.BaseHTTPRequestHandler):
    "`repos`: files by repository and path"
    repos = {}

    def log_message(self, *args): pass

    def answer(self, content, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for k, v in dict(headers, Content_Length=len(content)).items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(content)

    def refuse(self, code): self.answer(dict(error=code), 404, X_Error_Code=code)

    def do_GET(self):
        parts = self.path.partition('?')[0].strip('/').split('/')
        repo = '/'.join(parts[2:4] if parts[0] == 'api' else parts[:2])
        files = self.repos.get(repo)
        if files is None: return self.refuse('RepoNotFound')
        if parts[0] == 'api' and 'tree' in parts: # How files are listed by newer versions
            return self.answer([dict(type='file', path=n, size=len(f), oid='0'*40) for n, f in files.items()])
        if parts[0] == 'api':
            return self.answer(dict(id=repo, sha='a'*40, siblings=[dict(rfilename=n) for n in files], private=False))
        content = files.get('/'.join(parts[4:]))
        if content is None: return self.refuse('EntryNotFound')
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.answer(content, ETag=etag, X_Repo_Commit='a'*40, X_Linked_Etag=etag, X_Linked_Size=len(content))

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        if self.path == '/api/validate-yaml': return self.answer(dict(errors=[], warnings=[]))
        if self.path == '/api/repos/create':
            about = json.loads(body)
            repo = f'{about.get("organization") or "me"}/{about["name"]}'
            self.repos.setdefault(repo, {})
            return self.answer(dict(url=f'http://{self.headers["Host"]}/{repo}', name=repo, id=repo))
        repo = '/'.join(self.path.split('/')[3:5])
        if '/preupload/' in self.path:
            names = [f['path'] for f in json.loads(body)['files']]
            return self.answer(dict(files=[dict(path=n, uploadMode='regular', shouldIgnore=False) for n in names]))
        for line in map(json.loads, body.splitlines()):
            value = line['value']
            if line['key'] == 'file': self.repos[repo][value['path']] = base64.b64decode(value['content'])
        url = f'http://{self.headers["Host"]}/{repo}/commit/{"a"*40}'
        self.answer(dict(commitUrl=url, commitOid='a'*40, success=True, hookOutput=''))


@contextmanager
def hub(**repos):
    handler = type('Handler', (Hub,), dict(repos={k.replace('__', '/'): v for k, v in repos.items()}))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield f'http://127.0.0.1:{server.server_port}', handler.repos
        finally: server.shutdown()


def run(code, folder, address, **more):
    "In a process of its own, since the package reads its environment when it is imported"
    env = dict(os.environ, HF_ENDPOINT=address, HF_HOME=str(folder/'hf'), HF_TOKEN='hf_test', HF_HUB_DISABLE_XET='1',
        HF_HUB_DISABLE_PROGRESS_BARS='1', HF_HUB_DISABLE_TELEMETRY='1', **more)
    start = 'from cjm_yolox_pytorch.detection.detector import Detector, load_detector\n'
    start += 'def tried(f):\n    try: f()\n    except Exception as e: print(type(e).__name__, e)\n'
    done = subprocess.run([sys.executable, '-c', start + code], env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_publish_and_read_again(weights, tmp_path):
    pytest.importorskip('huggingface_hub')
    save_weights(weights, tmp_path/'best.safetensors')
    (tmp_path/'curves.png').write_bytes(b'a picture')
    with hub() as (address, repos):
        said = run("""
d = load_detector('best.safetensors', 'cpu')
print(d.push_to_hub('me/farm', license='mit'))
print(Detector.from_pretrained('me/farm', device='cpu'))
tried(lambda: Detector.from_pretrained('me/nothing'))
""", tmp_path, address)
        assert f'{address}/me/farm' in said and 'Detector of 3 classes at 64: score > 0.4 to 0.5, by class' in said
        assert f'FileNotFoundError me/nothing: no such repository at {address}, and no such file or folder here' in said
        files = repos['me/farm']
        assert {*files} >= {'model.safetensors', 'README.md', 'curves.png'}
        assert files['model.safetensors'] == (tmp_path/'best.safetensors').read_bytes()
        assert b'license: "mit"' in files['README.md'] and b'| AP50 | 0.750 |' in files['README.md']
        files['README.md'] = b'my words' # A card that somebody edited stays
        run("load_detector('best.safetensors', 'cpu').push_to_hub('me/farm')", tmp_path, address)
        assert files['README.md'] == b'my words'
    found = run("print(Detector.from_pretrained('me/farm', device='cpu').names)", tmp_path, address, HF_HUB_OFFLINE='1')
    assert found == f'{NAMES}\n' # From the cache
    gone = run("tried(lambda: Detector.from_pretrained('me/other'))", tmp_path, address, HF_HUB_OFFLINE='1')
    assert 'OSError me/other could not be downloaded' in gone and 'is not in the cache' in gone


@pytest.mark.slow
def test_pickles_are_not_read_from_a_hub(weights, tmp_path):
    pytest.importorskip('huggingface_hub')
    save_weights(weights, tmp_path/'best.safetensors')
    good, bad = (tmp_path/'best.safetensors').read_bytes(), pickle.dumps(print)
    repos = dict(me__pickle={'model.pth': bad}, me__disguised={'model.safetensors': bad},
        me__other={'farm.safetensors': good, 'model.pth': bad}, me__two={'a.safetensors': good, 'b.safetensors': good})
    with hub(**repos) as (address, _):
        said = run("""
print(Detector.from_pretrained('me/other', device='cpu').names)
for name in ('pickle', 'disguised', 'two'): tried(lambda: Detector.from_pretrained(f'me/{name}'))
""", tmp_path, address).splitlines()
    assert said[0] == str(NAMES)
    assert said[1].startswith('FileNotFoundError me/pickle has no model.safetensors: pickles are not read from there')
    assert said[2].startswith('ValueError') and said[2].endswith('is not a safetensors file, so it was not read')
    assert 'me/two has no model.safetensors: it has a.safetensors, b.safetensors' in said[3]


def test_the_package_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError, match=r"huggingface_hub is missing: pip install 'cjm-yolox-pytorch\[hub\]'"):
        Detector.from_pretrained('me/farm')


def test_a_local_folder_is_a_repository(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None) # Not needed
    folder = load_detector(weights, 'cpu').save_pretrained(tmp_path/'deep/farm', license='cc-by-4.0')
    again = Detector.from_pretrained(folder, device='cpu', img_size=96)
    assert (again.names, again.spec.img_size, again.conf) == (NAMES, 96, [.4, .5, .4])
    assert load_weights(folder/'model.safetensors').notes == weights.notes
    (folder/'README.md').write_text('my words')
    write_pretrained(weights, folder)
    assert (folder/'README.md').read_text() == 'my words'
    (folder/'model.safetensors').rename(folder/'best.safetensors')
    assert find_pretrained(str(folder)) == folder/'best.safetensors'
    (folder/'last.safetensors').touch()
    with pytest.raises(FileNotFoundError, match='it has best.safetensors, last.safetensors'): find_pretrained(folder)


def test_files_sizes_and_addresses_stay_what_they_are(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    monkeypatch.chdir(tmp_path)
    save_weights(weights, 'best.safetensors')
    assert Detector.from_pretrained('best.safetensors', device='cpu', names=['a', 'b', 'c']).names == ['a', 'b', 'c']
    (tmp_path/'me').mkdir()
    (tmp_path/'best.safetensors').rename('me/farm') # A file with the form of a repository
    assert Detector.from_pretrained('me/farm', device='cpu').names == NAMES
    with pytest.raises(FileNotFoundError, match='gone.safetensors: no such file'):
        Detector.from_pretrained('me/gone.safetensors')
    with pytest.raises(ValueError, match="revision='v1': it is for repositories"):
        Detector.from_pretrained('me/farm', revision='v1')


def test_exported_networks_have_no_weights_to_publish(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    onnx = pytest.importorskip('onnx')
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], 'a', [], [])), tmp_path/'a.onnx')
    detector = Detector.__new__(Detector)
    detector.source, detector.names = str(tmp_path/'a.onnx'), None
    with pytest.raises(ValueError, match='a file of ONNX, not of weights'): detector.push_to_hub('me/farm')


def test_cards_escape_what_strangers_wrote(weights):
    card = model_card(weights, 'me/farm')
    assert '| 2 | barn \\| owl | 0.4 |' in card and 'No license was given.' in card and 'license:' not in card
    assert card.startswith('---\nlibrary_name: "cjm-yolox-pytorch"\npipeline_tag: "object-detection"\n')
    weights = Weights(weights.state, 'yolox_nano', 3, (0.,)*3, (1.,)*3, ['<script>', '[a](b)', '`c`'])
    card = model_card(weights, 'me/farm', pictures=['curves.png'])
    assert '<script>' not in card and '| 1 | \\[a\\](b) |' in card and '![curves.png](curves.png)' in card
    assert '## Results' not in card and '## Training' not in card
