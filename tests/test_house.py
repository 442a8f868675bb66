"The house stands as it should: modules are their notebooks, notebooks are clean, layers hold, the core imports little."
import ast
import filecmp
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'cjm_yolox_pytorch'
MADE = 'runs', 'pretrained_checkpoints', 'BCCD_Dataset' # What pages leave beside them when they are run
NOTEBOOKS = {p.stem.split('_', 1)[1]: p.stem.split('_')[0] for p in (ROOT/'nbs').glob('[0-9]*_*.ipynb')} # Module: number, such as 07 or 07a


@pytest.fixture(scope='module')
def processed(tmp_path_factory):
    "A copy of the project in which notebooks were exported and cleaned again, and the README made"
    copy = tmp_path_factory.mktemp('copy')
    for name in ('settings.ini', 'README.md'): shutil.copy(ROOT/name, copy)
    for name in ('nbs', PACKAGE, 'docs'): shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', *MADE))
    for command in (['nbdev_export'], ['nbdev_clean']): subprocess.run([Path(sys.executable).with_name(command[0])], cwd=copy, check=True)
    subprocess.run([sys.executable, 'docs/readme.py'], cwd=copy, check=True)
    return copy


def files(folder, pattern): return sorted(str(p.relative_to(folder)) for p in folder.rglob(pattern) if '.ipynb_checkpoints' not in p.parts)


@pytest.mark.parametrize('folder, pattern, mend', [(PACKAGE, '*.py', 'nbdev_export'), ('nbs', '*.ipynb', 'nbdev_clean')])
def test_modules_and_notebooks_are_up_to_date(processed, folder, pattern, mend):
    assert files(processed/folder, pattern) == files(ROOT/folder, pattern), f'run {mend}'
    _, differ, errors = filecmp.cmpfiles(ROOT/folder, processed/folder, files(ROOT/folder, pattern), shallow=False)
    assert not differ + errors, f'run {mend}'


def test_readme_is_made_from_the_index(processed):
    assert (processed/'README.md').read_text(encoding='utf-8') == (ROOT/'README.md').read_text(encoding='utf-8'), 'run make readme'


def code_cells(notebook): return [c for c in json.loads(notebook.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


@pytest.mark.parametrize('module', NOTEBOOKS)
def test_a_notebook_imports_only_lower_numbered_ones(module):
    for cell in code_cells(ROOT/f'nbs/{NOTEBOOKS[module]}_{module}.ipynb'):
        source = ''.join(cell['source'])
        shown_first = source.startswith('#| echo: false') # A page may begin with a picture of what it is going to make
        for other in re.findall(rf'^\s*(?:from|import) {PACKAGE}\.(\w+)', source, re.M):
            assert NOTEBOOKS[other] < NOTEBOOKS[module] or (shown_first and other == module), f'{module} imports {other}'


EVERY_PAGE = pytest.mark.parametrize('notebook', sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts), ids=lambda p: p.stem)


@EVERY_PAGE
def test_pages_were_run(notebook):
    "A cell that ends by showing something has something to show"
    for cell in code_cells(notebook):
        source = ''.join(cell['source'])
        shows = re.search(r'^print\(|plt\.|^fig, |^#\| echo: false', source, re.M) or re.fullmatch(r'[\w.]+(, [\w.]+)*', source.strip().split('\n')[-1])
        if shows and not re.search(r'^#\| (hide|export|cuda|net)$|^def |^    print', source, re.M): assert cell['outputs'], source


@EVERY_PAGE
def test_pages_set_up_colab_first(notebook):
    first = ''.join(code_cells(notebook)[0]['source'])
    assert first.startswith('#| hide\nimport os\nif os.path.isdir(\'/content\')') and first.endswith(f"os.chdir('cjm-yolox-pytorch/{notebook.parent.relative_to(ROOT).as_posix()}')"), first


@EVERY_PAGE
def test_what_is_imported_is_used(notebook):
    code = '\n'.join(re.sub(r'^(\s*)[!%].*', r'\1pass', ''.join(c['source']), flags=re.M) for c in code_cells(notebook))
    tree = ast.parse(code)
    imported = {(a.asname or a.name).partition('.')[0] for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
    unused = {name for name in imported if len(re.findall(rf'\b{name}\b', code)) < 2}
    assert not unused


def test_model_and_loss_do_not_know_each_other():
    for module, strangers in dict(model={'simota', 'loss'}, simota={'model', 'checkpoints'}, loss={'model', 'checkpoints'}).items():
        source = (ROOT/PACKAGE/f'{module}.py').read_text(encoding='utf-8')
        assert not strangers & set(re.findall(r'^\s*from \.(\w+) import', source, re.M)), module


@pytest.mark.parametrize('module', ['loss', 'model'])
def test_the_core_needs_torch_torchvision_and_numpy_alone(module):
    code = f"""import sys, torch, torchvision.ops, torchvision.tv_tensors, torchvision.transforms.v2.functional, numpy, torch.distributed
top = lambda: {{name.partition('.')[0] for name in sys.modules}}
before = top()
import {PACKAGE}.{module}
assert (new := top() - before - set(sys.stdlib_module_names)) == {{'{PACKAGE}'}}, new"""
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_version_is_the_same_everywhere():
    version = re.search(r'^version = (.+)$', (ROOT/'settings.ini').read_text(), re.M)[1]
    assert f'__version__ = "{version}"' in (ROOT/PACKAGE/'__init__.py').read_text()


def test_the_package_takes_from_fastcore_what_both_of_its_lines_have():
    "A plain installation brings fastcore 2; that of the developers, because of nbdev, 1. Both have these names"
    taken = {tuple(m) for file in (ROOT/PACKAGE).glob('*.py') for m in re.findall(r'^\s*from (fastcore[\w.]*) import (.+)$', file.read_text(encoding='utf-8'), re.M)}
    assert taken == {('fastcore.basics', 'patch'), ('fastcore.docments', 'docments')}
    assert not any(re.search(r'^\s*import fastcore', file.read_text(encoding='utf-8'), re.M) for file in (ROOT/PACKAGE).glob('*.py'))
