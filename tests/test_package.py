"The wheel and the source distribution hold what they should, and the wheel works where nothing else is installed."
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'cjm_yolox_pytorch'
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The wheel and the source distribution of a copy of this checkout"
    copy, dist = tmp_path_factory.mktemp('source')/'checkout', tmp_path_factory.mktemp('dist')
    made = ['.venv*', 'runs', '_docs', '_proc', '*.egg-info', '__pycache__', 'build', 'dist']
    ignore = shutil.ignore_patterns('.git', *made)
    shutil.copytree(ROOT, copy, ignore=ignore)
    subprocess.run([sys.executable, '-m', 'build', '--outdir', dist, copy], check=True, capture_output=True)
    (wheel,), (sdist,) = dist.glob('*.whl'), dist.glob('*.tar.gz')
    return wheel, sdist


def modules(): return {p.relative_to(ROOT).as_posix() for p in (ROOT/PACKAGE).rglob('*.py')}


def page_files(): return {f'{PACKAGE}/deploy/web_page/{name}' for name in ('index.html', 'detector.js')}


def test_wheel_holds_the_package_alone(built):
    names = {*zipfile.ZipFile(built[0]).namelist()}
    inside = {name for name in names if '.dist-info/' not in name}
    assert inside == {*modules(), *page_files(), f'{PACKAGE}/py.typed'}
    assert any(name.endswith('/LICENSE') for name in names)


def test_sdist_holds_sources_of_everything(built):
    with tarfile.open(built[1]) as archive: names = {name.partition('/')[2] for name in archive.getnames()}
    for folder in ('nbs', 'tests', 'tests_web', 'tools', 'benchmarks', 'docs'):
        sources = [p for p in (ROOT/folder).rglob('*') if p.suffix in ('.ipynb', '.py', '.npz', '.onnx', '.js')]
        tracked = [p.relative_to(ROOT).as_posix() for p in sources]
        expected = [p for p in tracked if '.ipynb_checkpoints' not in p and '/runs/' not in p]
        assert not {*expected} - names
    single = {'settings.ini', 'setup.py', 'pyproject.toml', 'LICENSE', 'README.md', 'CHANGELOG.md', 'Makefile'}
    assert {*modules(), *page_files(), *single} <= names
    assert not [name for name in names if name.startswith(('.venv', 'runs')) or '__pycache__' in name]


def test_wheel_works_in_an_empty_environment(built, tmp_path):
    "A plain installation: newest packages, fastcore 2, no nbdev; the demo trains, evaluates and writes its figures"
    venv.create(tmp_path/'env', with_pip=True)
    programs = tmp_path/'env'/('Scripts' if sys.platform == 'win32' else 'bin')
    install = [programs/'python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', built[0]]
    try:
        subprocess.run(install, check=True, cwd=tmp_path)
        subprocess.run([programs/'python', '-c', f'import {PACKAGE}.loss, {PACKAGE}.model'], check=True, cwd=tmp_path)
        demo = [programs/'yolox_demo', '--images', '32', '--epochs', '1', '--out', tmp_path/'demo']
        subprocess.run(demo, check=True, cwd=tmp_path, capture_output=True)
        assert (tmp_path/'demo/test/detections.png').stat().st_size > 0
    finally: shutil.rmtree(tmp_path/'env') # Gigabytes
