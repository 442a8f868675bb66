"Published weights are downloaded once for all folders, from wherever the environment says."
from functools import partial

import pytest
import torch
from fuzz import network
from servers import Files, serve

from cjm_yolox_pytorch.detection.detector import Detector
from cjm_yolox_pytorch.files.checkpoints import load_weights, mirrored
from cjm_yolox_pytorch.model import PRETRAINED_URLS, PUBLISHED, build_model, pretrained_file

URL = PRETRAINED_URLS['yolox_tiny']


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A working folder, a cache, and a mirror in a folder as `wget -x` writes it"
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'hub'))
    for name in ('HF_ENDPOINT', 'CJM_YOLOX_MIRROR'): monkeypatch.delenv(name, raising=False)
    for url in (URL, PUBLISHED['megvii']['yolox_tiny']):
        file = tmp_path/'mirror'/url.removeprefix('https://')
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network(), file)
    (tmp_path/'work').mkdir()
    monkeypatch.chdir(tmp_path/'work')
    return tmp_path


def files(folder): return sorted(p for p in folder.rglob('*') if p.is_file())


def test_one_download_serves_all_folders(place, monkeypatch):
    with serve(partial(Files, directory=place/'mirror')) as address:
        monkeypatch.setenv('CJM_YOLOX_MIRROR', address + '/')
        path = pretrained_file('yolox_tiny')
    assert path.is_relative_to(place/'hub/checkpoints') and files(place/'hub') == [path]
    (place/'elsewhere').mkdir()
    monkeypatch.chdir(place/'elsewhere') # The server is gone
    monkeypatch.delenv('CJM_YOLOX_MIRROR')
    assert pretrained_file('yolox_tiny') == path and load_weights('yolox_tiny').num_classes == 2
    assert not files(place/'elsewhere') and not files(place/'work')


def test_files_of_earlier_versions_are_found(place):
    earlier = place/'work/pretrained_checkpoints'
    for folder in (earlier, earlier/'megvii'):
        folder.mkdir()
        torch.save(network(), folder/'yolox_tiny.pth')
    assert pretrained_file('yolox_tiny').resolve() == earlier/'yolox_tiny.pth'
    assert pretrained_file('yolox_tiny', family='megvii').resolve() == earlier/'megvii/yolox_tiny.pth'
    assert not files(place/'hub')


def test_a_folder_of_another_name_is_filled_as_before(place, monkeypatch):
    monkeypatch.setenv('CJM_YOLOX_MIRROR', str(place/'mirror'))
    assert pretrained_file('yolox_tiny', place/'mine') == place/'mine/yolox_tiny.pth'
    assert pretrained_file('yolox_tiny', place/'mine', 'megvii') == place/'mine/megvii/yolox_tiny.pth'
    assert len(files(place/'mine')) == 2 and not files(place/'hub')


def test_families_with_the_same_file_name_are_kept_apart(place, monkeypatch):
    monkeypatch.setenv('CJM_YOLOX_MIRROR', '../mirror') # A folder, relative to the current one
    both = pretrained_file('yolox_tiny'), pretrained_file('yolox_tiny', family='megvii')
    assert files(place/'hub') == sorted(both) and both[0].name == both[1].name


def test_the_endpoint_of_the_hub_is_a_mirror_of_what_is_there(place, monkeypatch):
    with serve(partial(Files, directory=place/'mirror/huggingface.co')) as address:
        monkeypatch.setenv('HF_ENDPOINT', address)
        assert pretrained_file('yolox_tiny').is_relative_to(place/'hub')
    assert mirrored(PUBLISHED['megvii']['yolox_s']) == PUBLISHED['megvii']['yolox_s']
    assert mirrored(URL) == URL.replace('https://huggingface.co', address)
    monkeypatch.setenv('CJM_YOLOX_MIRROR', 'https://m.example/a') # What is left of a mirror's own address
    assert mirrored(URL) == f'https://m.example/a/{URL.replace("https://huggingface.co", address)[7:]}'


def test_errors_name_the_mirror_and_the_place_in_the_cache(place, monkeypatch):
    monkeypatch.setenv('CJM_YOLOX_MIRROR', str(place/'nothing'))
    with pytest.raises(OSError, match='file://.*nothing.*could not be downloaded.*put it at .*hub') as error:
        build_model('yolox_tiny', 2)
    assert not files(place/'hub') and URL.removeprefix('https://') in str(error.value)


def test_a_size_as_pretrained_detector(place, monkeypatch):
    monkeypatch.setenv('CJM_YOLOX_MIRROR', str(place/'mirror'))
    with pytest.raises(ValueError, match='do not fit'): # Three tensors are not a network, but they came from there
        Detector.from_pretrained('yolox_tiny', device='cpu')
    assert len(files(place/'hub')) == 1
