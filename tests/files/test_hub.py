"A repository on a server of this machine that speaks the few endpoints of Hugging Face's hub."
import base64
import hashlib
import http.server
import importlib.util
import json
import os
import pickle
import socket
import sys
from dataclasses import replace

import pytest
import torch
from servers import serve

from cjm_yolox_pytorch.detection.detector import Detector, load_detector
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.files.hub import find_pretrained, publish, write_pretrained
from cjm_yolox_pytorch.files.model_card import card_license, is_unedited, model_card
from cjm_yolox_pytorch.model import build_model

LOG_IN = 'huggingface_hub.login(), or set HF_TOKEN'
NAMES = ['cat', 'dog', 'barn | owl']
SAFETENSORS = b'\2\0\0\0\0\0\0\0{}' # Without tensors


@pytest.fixture(scope='module')
def weights():
    torch.manual_seed(0)
    state = build_model('yolox_nano', 3, pretrained=False).state_dict()
    thresholds = dict(score=.4, classes=[.4, .5, .4], split='val', fingerprint='ab')
    results = dict(objects=[9, 5, 0], AP=[.6, .4, None], AP50=[.8, .7, None])
    notes = dict(AP=.5, AP50=.75, epoch=7, training='train', validation='val', fingerprint='cd', thresholds=thresholds,
        class_results=results)
    return Weights(state, 'yolox_nano', 3, (0., 0., 0.), (1., 1., 1.), NAMES, 64, notes=notes)


class Hub(http.server.BaseHTTPRequestHandler):
    "`repos`: files by repository and path; `large`: uploads through LFS by their hash"
    repos, large, private = {}, {}, set()

    def log_message(self, *args): pass

    def answer(self, content, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for k, v in dict(headers, Content_Length=len(content)).items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(content)

    def refuse(self, code, status=404): self.answer(dict(error=code), status, X_Error_Code=code, X_Error_Message=code)

    @property
    def here(self): return f'http://{self.headers["Host"]}'

    def do_GET(self):
        parts = self.path.partition('?')[0].strip('/').split('/')
        repo = '/'.join(parts[2:4] if parts[0] == 'api' else parts[:2])
        files, revision = self.repos.get(repo), (*parts[3 if parts[0] != 'api' else 5:], 'main')[0]
        if files is None: return self.refuse('RepoNotFound')
        if repo == 'me/broken': return self.refuse('InternalError', 500)
        if repo == 'me/gated': return self.refuse('GatedRepo', 403)
        if revision not in ('main', 'a'*40): return self.refuse('RevisionNotFound')
        if parts[0] == 'api' and 'tree' in parts: # How files are listed by newer versions
            return self.answer([dict(type='file', path=n, size=len(f), oid='0'*40) for n, f in files.items()])
        if parts[0] == 'api':
            names = [dict(rfilename=n) for n in files]
            return self.answer(dict(id=repo, sha='a'*40, siblings=names, private=repo in self.private))
        content = files.get('/'.join(parts[4:]))
        if content is None: return self.refuse('EntryNotFound')
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.answer(content, ETag=etag, X_Repo_Commit='a'*40, X_Linked_Etag=etag, X_Linked_Size=len(content))

    do_HEAD = do_GET

    def body(self): return self.rfile.read(int(self.headers.get('Content-Length', 0)))

    def do_PUT(self):
        content = self.body()
        self.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self):
        body, repo = self.body(), '/'.join(self.path.split('/')[3:5])
        if self.path == '/api/repos/create': return self.create(json.loads(body))
        if self.path == '/api/validate-yaml': return self.answer(dict(errors=[], warnings=[]))
        if self.path.endswith('/objects/batch'): # What LFS asks before it uploads
            found = [dict(f, actions=dict(upload=dict(href=f'{self.here}/lfs'))) for f in json.loads(body)['objects']]
            return self.answer(dict(transfer='basic', objects=found))
        if '/preupload/' in self.path:
            modes = {f['path']: 'lfs' if f['path'].endswith('.safetensors') else 'regular'
                for f in json.loads(body)['files']}
            return self.answer(dict(files=[dict(path=n, uploadMode=m, shouldIgnore=False) for n, m in modes.items()]))
        for line in map(json.loads, body.splitlines()):
            value = line['value']
            if line['key'] == 'file': self.repos[repo][value['path']] = base64.b64decode(value['content'])
            if line['key'] == 'lfsFile': self.repos[repo][value['path']] = self.large[value['oid']]
        url = f'{self.here}/{repo}/commit/{"a"*40}'
        self.answer(dict(commitUrl=url, commitOid='a'*40, success=True, hookOutput=''))

    def create(self, about):
        owner = about.get('organization') or 'me'
        if owner == 'others': return self.refuse('Forbidden', 403)
        repo = f'{owner}/{about["name"]}'
        private = about.get('private') or about.get('visibility') == 'private' # In older and newer versions
        if repo not in self.repos and private: self.private.add(repo)
        self.repos.setdefault(repo, {})
        self.answer(dict(url=f'{self.here}/{repo}', name=repo, id=repo))


@pytest.fixture
def hub():
    "Address of a hub, and its handler"
    handler = type('Handler', (Hub,), dict(repos={}, large={}, private=set()))
    with serve(handler) as address: yield address, handler


@pytest.fixture
def connect(monkeypatch, tmp_path):
    "Choose a hub. huggingface_hub is imported anew, since it reads its environment when it is imported"
    if not importlib.util.find_spec('huggingface_hub'): pytest.skip('needs huggingface_hub')
    def loaded(): return [name for name in sys.modules if name.partition('.')[0] == 'huggingface_hub']
    before = {name: sys.modules.pop(name) for name in loaded()}
    for name in [n for n in os.environ if n.startswith(('HF_', 'HUGGING'))]: monkeypatch.delenv(name)
    switches = 'HF_HUB_DISABLE_XET', 'HF_HUB_DISABLE_PROGRESS_BARS', 'HF_HUB_DISABLE_TELEMETRY'
    def connect(address, **more):
        for name in loaded(): del sys.modules[name]
        env = dict.fromkeys(switches, '1') | dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path/'hf'), HF_TOKEN='hf_test')
        for k, v in (env | dict(NO_PROXY='127.0.0.1', no_proxy='127.0.0.1') | more).items(): monkeypatch.setenv(k, v)
    monkeypatch.setattr('time.sleep', lambda seconds: None) # Between attempts
    yield connect
    for name in loaded(): del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def nobody():
    "An address at which nobody answers"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)) # Without listening
        yield f'http://127.0.0.1:{s.getsockname()[1]}'


def error_of(f, *args, **kwargs):
    with pytest.raises((OSError, ValueError)) as e: f(*args, **kwargs)
    text = f'{e.type.__name__}: {e.value}'
    assert '\n' not in text, text
    return text


def test_publish_and_read_again(weights, hub, connect, tmp_path):
    address, handler = hub
    connect(address)
    save_weights(weights, tmp_path/'best.safetensors')
    (tmp_path/'curves.png').write_bytes(b'a picture')
    published = load_detector(tmp_path/'best.safetensors', 'cpu').push_to_hub('me/farm', license='mit')
    files = handler.repos['me/farm']
    card = files['README.md'].decode()
    assert '**AP 0.500** and **AP50 0.750** on the split val, after epoch 7.' in card and 'license: "mit"' in card
    assert '![Losses and average precision by epoch](curves.png)' in card
    assert published == f'{address}/me/farm' and {*files} >= {'model.safetensors', 'README.md', 'curves.png'}
    assert [*handler.large.values()] == [files['model.safetensors']] == [(tmp_path/'best.safetensors').read_bytes()]
    again = Detector.from_pretrained(published, device='cpu') # A colleague gets the address
    assert again.names == NAMES
    assert 'Detector of 3 classes at 64: score > 0.4 to 0.5, by class' in str(again)
    assert find_pretrained('me/farm').read_bytes() == files['model.safetensors']


def test_addresses_as_browsers_show_them(hub, connect):
    address, handler = hub
    connect(address)
    handler.repos['me/farm'] = {'model.safetensors': SAFETENSORS}
    found = find_pretrained('me/farm')
    for source in ('me/farm/', f'{address}/me/farm/', f'{address}/me/farm/tree/main', f'{address}/me/farm/tree/main/'):
        assert find_pretrained(source) == found
    assert error_of(find_pretrained, f'{address}/me/farm/tree/v9').startswith(
        "FileNotFoundError: me/farm has no revision 'v9'")
    assert "me/farm has no revision 'refs/pr/1'" in error_of(find_pretrained, f'{address}/me/farm/tree/refs%2Fpr%2F1')
    assert error_of(find_pretrained, f'{address}/me/farm/tree/main', 'v9') == (
        "ValueError: revision='v9', but the URL says 'main': give one of them")


@pytest.mark.parametrize('source', [None, 3])
def test_weights_of_another_type_are_named(source):
    with pytest.raises(TypeError, match=f'{type(source).__name__}: weights as a file, a URL, or a size'):
        Detector.from_pretrained(source)


def test_a_missing_picture_leaves_the_old_weights(weights, tmp_path):
    write_pretrained(weights, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileNotFoundError, match='nope.png.*: no such files'):
        write_pretrained(replace(weights, names=['pig', 'cow', 'hen']), tmp_path, pictures=['nope.png'])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(FileNotFoundError): write_pretrained(weights, tmp_path/'new', pictures=['nope.png'])
    assert not (tmp_path/'new').exists()


def test_a_card_is_renewed_with_the_weights(weights, hub, connect):
    address, handler = hub
    connect(address)
    publish(weights, 'me/farm', license='mit')
    publish(replace(weights, names=['pig', 'cow', 'hen']), 'me/farm')
    card = handler.repos['me/farm']['README.md'].decode()
    assert '| 0 | pig |' in card and 'cat' not in card and is_unedited(card)
    assert card_license(card) == 'mit' # It was given once


def test_a_card_that_somebody_edited_stays(weights, hub, connect, caplog):
    address, handler = hub
    connect(address)
    publish(weights, 'me/farm', license='mit')
    files = handler.repos['me/farm']
    files['README.md'] = edited = files['README.md'].replace(b'# farm', b'# My farm')
    before = files['model.safetensors']
    said = error_of(publish, replace(weights, notes={}), 'me/farm', license='apache-2.0')
    assert said.startswith("ValueError: license='apache-2.0': the card of me/farm was edited and says mit. Change it")
    assert files['model.safetensors'] == before and not caplog.records
    publish(replace(weights, notes={}), 'me/farm', license='mit')
    assert files['README.md'] == edited and files['model.safetensors'] != before
    assert caplog.messages[0].startswith('the card of me/farm was edited, so it stays')


def test_a_public_repository_does_not_become_private_in_silence(weights, hub, connect):
    address, handler = hub
    connect(address)
    publish(weights, 'me/secret', private=True)
    publish(weights, 'me/secret', private=True)
    assert handler.private == {'me/secret'}
    handler.repos['me/open'] = {}
    assert f'private=True, but me/open is public: make it private at {address}/me/open/settings' in error_of(
        publish, weights, 'me/open', private=True)
    assert handler.repos['me/open'] == {}


def test_errors_of_the_hub_say_what_to_do(weights, hub, connect):
    address, handler = hub
    connect(address)
    good, bad = SAFETENSORS, pickle.dumps(print)
    handler.repos.update({'me/farm': {'model.safetensors': good}, 'me/gated': {}, 'me/broken': {},
        'me/pickle': {'model.pth': bad}, 'me/disguised': {'model.safetensors': bad},
        'me/two': {'a.safetensors': good, 'b.safetensors': good}})
    def said(*args): return error_of(find_pretrained, *args)
    assert said('me/nothing') == (f'FileNotFoundError: me/nothing: no such file or folder here, and no such repository '
        f'at {address}. For a private one, log in: {LOG_IN}')
    assert said('me/farm', 'v9') == (f"FileNotFoundError: me/farm has no revision 'v9': choose a branch, tag or commit "
        f'from {address}/me/farm/commits/main')
    assert said('me/gated') == (f'PermissionError: me/gated is gated: accept its terms at {address}/me/gated, '
        f'and log in: {LOG_IN}')
    assert said('runs/-birds').startswith('FileNotFoundError: runs/-birds: no such file or folder here, and no such')
    assert said('me/pickle').startswith('FileNotFoundError: me/pickle has no weights in safetensors, and pickles are')
    assert said('me/disguised').endswith('is not a safetensors file, so it was not read')
    assert 'neither model.safetensors nor best.safetensors. It has a.safetensors, b.safetensors' in said('me/two')
    assert said('me/broken').startswith('OSError: me/broken could not be downloaded')
    assert error_of(publish, weights, 'others/farm') == (f'PermissionError: others/farm could not be written at '
        f'{address}: log in with a token that may write there: {LOG_IN}')


def test_a_repository_may_call_its_weights_otherwise(hub, connect):
    address, handler = hub
    connect(address)
    run = {'best.safetensors': SAFETENSORS, 'last.safetensors': b'', 'state.pt': b''}
    handler.repos.update({'me/other': {'farm.safetensors': SAFETENSORS, 'model.pth': b''}, 'me/run': run})
    found = [find_pretrained(name).name for name in ('me/other', 'me/run')]
    assert found == ['farm.safetensors', 'best.safetensors']
    connect(address, HF_HUB_OFFLINE='1')
    assert [find_pretrained(name).name for name in ('me/other', 'me/run')] == found


def test_without_a_connection_the_cache_serves(weights, hub, connect, nobody):
    address, handler = hub
    connect(address)
    for _ in range(2): publish(weights, 'me/farm') # The second time, there is a card to look at
    handler.repos['me/farm']['model.safetensors'] = SAFETENSORS
    known = find_pretrained('me/farm')
    connect(nobody)
    assert find_pretrained('me/farm') == known
    said = error_of(find_pretrained, 'me/other')
    failed = f'me/other could not be downloaded from {nobody} and is not in the cache'
    assert said.startswith(f'OSError: {failed}: check the connection (')
    for name in ('me/farm', 'me/new'): # Whose card is in the cache, or not
        assert error_of(publish, weights, name).startswith(f'OSError: {name} could not be written at {nobody}: ')
    connect(address, HF_HUB_OFFLINE='1')
    assert find_pretrained('me/farm') == known
    assert error_of(find_pretrained, 'me/other') == (
        'OSError: me/other is not in the cache, and HF_HUB_OFFLINE forbids to download it: unset it')


def test_the_package_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError) as e: Detector.from_pretrained('runs/bird') # Or a folder with a slip in its name
    assert str(e.value) == ('runs/bird: no such file or folder here, and to look for a repository, '
        "huggingface_hub is missing: pip install 'cjm-yolox-pytorch[hub]'")
    with pytest.raises(FileNotFoundError, match='yolox_xs: no such file or folder, and not a size .yolox_nano, '):
        Detector.from_pretrained('yolox_xs')


def test_a_local_folder_is_a_repository(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None) # Not needed
    folder = load_detector(weights, 'cpu').save_pretrained(tmp_path/'deep/farm', license='cc-by-4.0')
    again = Detector.from_pretrained(folder, device='cpu', img_size=96)
    assert (again.names, again.spec.img_size, again.conf) == (NAMES, 96, [.4, .5, .4])
    assert load_weights(folder/'model.safetensors').notes == weights.notes
    (folder/'README.md').write_text('my words')
    write_pretrained(weights, folder)
    assert (folder/'README.md').read_text() == 'my words'
    with pytest.raises(ValueError, match="license='mit': the card of farm was edited and says none"):
        write_pretrained(weights, folder, license='mit')
    with pytest.raises(ValueError, match="revision='v1': it is for repositories"): find_pretrained(folder, 'v1')


def test_the_folder_of_a_training_has_its_best_weights(weights, tmp_path):
    for name in ('best.safetensors', 'last.safetensors'): (tmp_path/name).write_bytes(SAFETENSORS)
    assert find_pretrained(str(tmp_path)) == tmp_path/'best.safetensors'
    (tmp_path/'best.safetensors').unlink()
    assert find_pretrained(tmp_path) == tmp_path/'last.safetensors'
    (tmp_path/'curves.png').write_bytes(b'a picture') # Published into the same folder
    write_pretrained(weights, tmp_path, pictures=[tmp_path/'curves.png'])
    assert (tmp_path/'curves.png').read_bytes() == b'a picture'
    assert find_pretrained(tmp_path) == tmp_path/'model.safetensors'


FOLDERS = {(): 'has no weights in safetensors, .* It has no files at all: give a file, or',
    ('state.pt', 'recipe.yaml'): 'has no weights in safetensors, .* It has recipe.yaml, state.pt: give a file, or',
    ('a.safetensors', 'b.safetensors'): 'has neither model.* It has a.safetensors, b.safetensors: give a file, or'}


@pytest.mark.parametrize('names, said', FOLDERS.items())
def test_a_folder_without_weights_is_told_with_what_it_has(tmp_path, names, said):
    for name in names: (tmp_path/name).touch()
    with pytest.raises(FileNotFoundError, match=said): Detector.from_pretrained(tmp_path)


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
    assert '| 2 | barn \\| owl | 0 | - | - | 0.400 |' in card
    assert 'No license was given.' in card and 'license:' not in card
    assert card.startswith('---\nlibrary_name: "cjm-yolox-pytorch"\npipeline_tag: "object-detection"\n')
    weights = Weights(weights.state, 'yolox_nano', 3, (0.,)*3, (1.,)*3, ['<script>', '[a](b)', '`c`'])
    card = model_card(weights, 'me/farm', pictures=['curves.png'])
    assert '<script>' not in card and '| 1 | \\[a\\](b) |' in card
    assert '![Losses and average precision by epoch](curves.png)' in card
    assert '## Results' not in card and '## Training' not in card
    odd = '<script>'
    recipe = dict(tile=640, overlap=None, model=odd) | {odd: odd}
    notes = dict(AP=.5, epoch=odd, training=odd, validation=odd, fingerprint=odd, weights=odd, recipe=recipe)
    card = model_card(replace(weights, notes=notes), 'me/farm', license=odd, pictures=[odd])
    assert odd not in card.partition('# farm')[2] and ', tile=640)' in card


@pytest.mark.parametrize('notes', [dict(recipe='fast'), dict(recipe=[1]), dict(class_results=3), [1]])
def test_notes_of_other_kinds_are_refused(weights, notes, tmp_path):
    odd = replace(weights, notes=notes)
    with pytest.raises(ValueError, match='notes of the weights'): model_card(odd, 'me/farm')
    save_weights(odd, tmp_path/'a.safetensors')
    with pytest.raises(ValueError, match='a.safetensors: bad metadata'): load_weights(tmp_path/'a.safetensors')
