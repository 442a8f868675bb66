"The structure holds: modules match their notebooks, imports go downwards, the core imports little, rooms stay small."
import ast
import filecmp
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import cjm_yolox_pytorch as package
from cjm_yolox_pytorch.commands.options import parser_of
from cjm_yolox_pytorch.commands.start import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'cjm_yolox_pytorch'
FLOORS = ['', 'commands', 'files', 'data', 'detection', 'evaluation', 'training', 'deploy'] # From the core upwards
READERS = [f'data.{name}' for name in ('annotations', 'coco', 'voc', 'yolo', 'yolo_config', 'csv', 'splits', 'checks')]
LEFTOVERS = 'runs', 'pretrained_checkpoints', 'BCCD_Dataset' # Written by tutorials when they are run


def notebooks(folder=ROOT/'nbs'):
    return sorted(p for p in folder.rglob('*.ipynb') if not {'.ipynb_checkpoints', *LEFTOVERS} & {*p.parts})


def room(notebook):
    "The module of a notebook such as nbs/data/03_coco.ipynb: data.coco"
    floor, name = notebook.relative_to(ROOT/'nbs').parent.parts, notebook.stem.split('_', 1)[1]
    return '.'.join([*floor, name])


# Modules from the ground up: by floor, then by the number of their notebook
ROOMS = {room(p): p for floor in FLOORS for p in sorted((ROOT/'nbs'/floor).glob('[0-9]*_*.ipynb'))}
MODULES = {name: ROOT/PACKAGE/f'{name.replace(".", "/")}.py' for name in ROOMS}
LEVEL = {name: level for level, name in enumerate(ROOMS)}


def cells(notebook, kind='code'):
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == kind: yield cell, ''.join(cell['source'])


def own_imports(source):
    return re.findall(rf'^\s*from {PACKAGE}\.([\w.]+) import', source, re.M)


@pytest.fixture(scope='module')
def processed(tmp_path_factory):
    "A copy of the project with notebooks exported and cleaned again and the README rebuilt"
    copy = tmp_path_factory.mktemp('copy')
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', *LEFTOVERS)
    for name in ('settings.ini', 'README.md'): shutil.copy(ROOT/name, copy)
    for name in ('nbs', PACKAGE, 'docs'): shutil.copytree(ROOT/name, copy/name, ignore=ignore)
    for command in ('nbdev_export', 'nbdev_clean'):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=copy, check=True)
    subprocess.run([sys.executable, 'docs/readme.py'], cwd=copy, check=True)
    return copy


def files(folder, pattern):
    found = [p for p in folder.rglob(pattern) if not {'.ipynb_checkpoints', *LEFTOVERS} & {*p.parts}]
    return sorted(str(p.relative_to(folder)) for p in found)


@pytest.mark.parametrize('folder, pattern, fix', [(PACKAGE, '*.py', 'nbdev_export'), ('nbs', '*.ipynb', 'nbdev_clean')])
def test_modules_and_notebooks_are_up_to_date(processed, folder, pattern, fix):
    assert files(processed/folder, pattern) == files(ROOT/folder, pattern), f'run {fix}'
    _, differ, errors = filecmp.cmpfiles(ROOT/folder, processed/folder, files(ROOT/folder, pattern), shallow=False)
    assert not differ + errors, f'run {fix}'


def test_readme_is_made_from_the_index(processed):
    made, committed = (p.read_text(encoding='utf-8') for p in (processed/'README.md', ROOT/'README.md'))
    assert made == committed, 'run make readme'


def test_every_module_has_a_notebook():
    modules = [p for p in (ROOT/PACKAGE).rglob('*.py') if p.name not in ('__init__.py', '__main__.py', '_modidx.py')]
    assert {*modules} == {*MODULES.values()}


@pytest.mark.parametrize('name', ROOMS)
def test_notebooks_import_downwards_only(name):
    for _, source in cells(ROOMS[name]):
        preview = source.startswith('#| echo: false') # A page may open with a figure of what it is about to define
        lazy = name == 'model' and source.startswith('#| export') # build_model loads published weights in one call
        for other in own_imports(source):
            allowed = LEVEL[other] < LEVEL[name] or (preview and other == name)
            assert allowed or (lazy and other in ('files.checkpoints', 'files.matching')), f'{name} imports {other}'


@pytest.mark.parametrize('name', [name for name in ROOMS if '.' not in name])
def test_core_modules_import_torch_torchvision_and_numpy_alone(name):
    tree = ast.parse(MODULES[name].read_text(encoding='utf-8'))
    outside = {'torch', 'torchvision', 'numpy', *sys.stdlib_module_names}
    for node in tree.body:
        if isinstance(node, ast.Import): assert {a.name.partition('.')[0] for a in node.names} <= outside
        if isinstance(node, ast.ImportFrom):
            if node.level: assert node.level == 1 and '.' not in node.module, f'{name} imports from {node.module}'
            else: assert node.module.partition('.')[0] in outside, f'{name} imports {node.module}'


def modules_loaded_by(modules, before):
    imports = ', '.join(f'{PACKAGE}.{module}' for module in modules)
    code = f'import sys, {before}\nbefore = {{*sys.modules}}\nimport {imports}\nprint(*({{*sys.modules}} - before))'
    command = [sys.executable, '-c', code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize('module', ['loss', 'model'])
def test_importing_the_core_loads_nothing_else(module):
    torchvision = 'torchvision.ops, torchvision.tv_tensors, torchvision.transforms.v2.functional'
    loaded = modules_loaded_by([module], f'torch, torch.distributed, numpy, {torchvision}')
    loaded = {name.partition('.')[0] for name in loaded}
    assert loaded - {*sys.stdlib_module_names} == {PACKAGE}


def test_readers_of_annotations_do_not_import_the_network():
    loaded = {name.removeprefix(f'{PACKAGE}.') for name in modules_loaded_by(READERS, 'torch')}
    assert not loaded & {'model', 'inference', 'loss', 'simota', 'files.checkpoints', 'files.matching'}


def test_model_and_loss_do_not_know_each_other():
    assignment = {'assignment', 'assignment_sparse', 'simota', 'sampling', 'loss'}
    rules = dict(model=assignment, inference={*assignment, 'model'}, simota={'model'}, loss={'model'})
    for module, strangers in rules.items():
        imported = re.findall(r'^\s*from \.([\w.]+) import', MODULES[module].read_text(encoding='utf-8'), re.M)
        assert not strangers & {*imported}, module


@pytest.mark.parametrize('name', ROOMS)
def test_modules_have_at_most_350_lines(name):
    assert len(MODULES[name].read_text(encoding='utf-8').splitlines()) <= 350


def code_lines(path):
    lines = [line.strip() for line in path.read_text(encoding='utf-8').splitlines()]
    return sum(bool(line) and not line.startswith('#') for line in lines)


def lines_of_code():
    "File, number and text of every line; nbdev wraps the generated `__all__` later than we do"
    folders = [PACKAGE, 'tests', 'tests_docs', 'tests_web', 'tools', 'benchmarks', 'docs']
    paths = [ROOT/'setup.py', *(p for folder in folders for p in (ROOT/folder).rglob('*.py'))]
    for path in (p for p in paths if p.stem != '_modidx'):
        source = re.sub(r'^__all__ = \[.*?\]', '', path.read_text(encoding='utf-8'), flags=re.S | re.M)
        for n, line in enumerate(source.splitlines(), start=1): yield path.name, n, line
    for path in notebooks():
        for cell, source in cells(path):
            for n, line in enumerate(source.splitlines(), start=1): yield f'{path.name} {cell["id"]}', n, line


def test_notebooks_have_at_most_700_kb():
    """Pictures of photos are saved as JPEG, and with few more pixels than a page shows"""
    sizes = {p.name: p.stat().st_size for p in notebooks()}
    assert {name: size for name, size in sizes.items() if size > 700_000} == {}


def test_lines_have_at_most_120_characters():
    assert [(where, n) for where, n, line in lines_of_code() if len(line) > 120] == []


def test_the_core_is_read_in_an_afternoon():
    assert sum(code_lines(MODULES[name]) for name in ROOMS if '.' not in name) <= 1500


def test_exported_cells_are_short():
    exported = [source for p in ROOMS.values() for _, source in cells(p) if re.match(r'#\| export', source)]
    long = [source for source in exported if sum(bool(line.strip()) for line in source.split('\n')[1:]) > 20]
    assert len(long) <= 8, '\n'.join(source.split('\n')[1] for source in long)


def defined_names(path):
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            patched = any('patch' in ast.unparse(d) for d in node.decorator_list) # A method, not a name of its own
            if not patched: yield node.name
        if isinstance(node, ast.Assign):
            parts = [n for target in node.targets for n in ast.walk(target)]
            yield from {n.id for n in parts if isinstance(n, ast.Name)} - {'_', '_all_', '__all__'}


def test_no_name_is_defined_in_two_modules():
    times = Counter(name for path in MODULES.values() for name in {*defined_names(path)})
    assert [name for name, n in times.items() if n > 1] == []


EVERY_PAGE = pytest.mark.parametrize('notebook', notebooks(), ids=lambda p: p.relative_to(ROOT/'nbs').as_posix())


@EVERY_PAGE
def test_pages_were_run(notebook):
    "A cell that ends by showing something has something to show"
    for cell, source in cells(notebook):
        last = source.strip().split('\n')[-1]
        names = re.fullmatch(r'[\w.]+(, [\w.]+)*', last)
        shows = re.search(r'^print\(|plt\.|^fig, |^#\| echo: false', source, re.M) or names
        exempt = re.search(r'^#\| (hide|export|cuda|net|slow|eval)|^def |^    print', source, re.M)
        if shows and not exempt: assert cell['outputs'], source


@EVERY_PAGE
def test_titles_are_words(notebook):
    "Not names of modules; a command is called what is typed"
    title, _, rest = ''.join(json.loads(notebook.read_text(encoding='utf-8'))['cells'][0]['source']).partition('\n')
    assert re.fullmatch(r'# (yolox_\w+|[A-Z][^_`]*|cjm-yolox-pytorch)', title)
    sentence = r'\n> [A-Z`]([^#]|C#)+[.?]' # And nothing else, such as a heading
    assert re.fullmatch(sentence, rest), 'a sentence that says what the page is about follows its title'


@EVERY_PAGE
def test_pages_set_up_colab_first(notebook):
    first = next(source for _, source in cells(notebook))
    folder = notebook.parent.relative_to(ROOT).as_posix()
    assert first.startswith("#| hide\nimport os\nif os.path.isdir('/content')"), first
    assert first.endswith(f"os.chdir('cjm-yolox-pytorch/{folder}')"), first


@EVERY_PAGE
def test_imported_names_are_used(notebook):
    code = '\n'.join(re.sub(r'^(\s*)[!%].*', r'\1pass', source, flags=re.M) for _, source in cells(notebook))
    imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    imported = {(a.asname or a.name).partition('.')[0] for n in imports for a in n.names}
    reexported = set(re.findall(r"'(\w+)'", ' '.join(re.findall(r'^_all_ = (.*)$', code, re.M))))
    assert not {name for name in imported - reexported if len(re.findall(rf'\b{name}\b', code)) < 2}


HOWTO = sorted((ROOT/'nbs/howto').glob('*.ipynb'))


@pytest.mark.parametrize('notebook', HOWTO, ids=lambda p: p.stem)
def test_howto_pages_use_what_users_have(notebook):
    "Public names alone, and no module of their own"
    for cell, source in cells(notebook):
        assert not re.search(r'^#\| *(default_exp|export)', source, re.M), cell['id']
        code = re.sub(r'^(\s*)[!%].*', r'\1pass', source, flags=re.M)
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.ImportFrom) or node.module.partition('.')[0] != PACKAGE: continue
            assert not [a.name for a in node.names if a.name.startswith('_')], source
            shared = {a.name for a in node.names} if node.module == PACKAGE else set()
            assert shared <= {*package.__all__}, source


@pytest.mark.parametrize('notebook', HOWTO, ids=lambda p: p.stem)
def test_howto_lines_fit_a_column(notebook):
    lines = [line for _, source in cells(notebook) for line in source.splitlines()]
    blocks = re.findall(r'^ *```.*?^ *```', '\n'.join(s for _, s in cells(notebook, 'markdown')), re.M | re.S)
    assert [line for line in lines + '\n'.join(blocks).splitlines() if len(line) > 92] == []


@pytest.mark.parametrize('name', COMMANDS)
def test_command_reference_is_up_to_date(name):
    module = importlib.import_module(f'{PACKAGE}.{COMMANDS[name]}')
    options = parser_of(getattr(module, f'yolox_{name}'))._actions
    cell = next(c for c, source in cells(ROOT/'nbs/howto/cli.ipynb') if source.endswith(f"reference('{name}')"))
    table = ''.join(cell['outputs'][0]['data']['text/markdown']).replace('\\', '')
    about = [' '.join((o.help or '').replace('%%', '%').split()) for o in options if o.dest != 'help']
    assert [text for text in about if f' | {text} |' not in table] == [], 'run nbs/howto/cli.ipynb'
    flags = [flag for o in options if o.dest != 'help' for flag in o.option_strings]
    assert sorted(re.findall(r'^\| `(--[\w-]+)`', table, re.M)) == sorted(flags)


def test_version_is_the_same_everywhere():
    version = re.search(r'^version = (.+)$', (ROOT/'settings.ini').read_text(), re.M)[1]
    assert f'__version__ = "{version}"' in (ROOT/PACKAGE/'__init__.py').read_text()
    assert any(f'__version__ = "{version}"' in source for _, source in cells(ROOT/'nbs/tutorials/from_python.ipynb'))
    assert f'## {version}' in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')


def test_fastcore_is_used_where_both_of_its_lines_agree():
    "A plain installation brings fastcore 2; development needs 1 because of nbdev. Both have these names."
    sources = [path.read_text(encoding='utf-8') for path in MODULES.values()]
    lines = [m for source in sources for m in re.findall(r'^\s*from fastcore\.(\w+) import (.+)$', source, re.M)]
    taken = {f'{module}.{name}' for module, names in lines for name in names.split(', ')}
    assert taken <= {'basics.patch', 'basics.store_attr', 'docments.docments'}
    assert not any(re.search(r'^\s*import fastcore', source, re.M) for source in sources)


@pytest.mark.parametrize('name', [name for name in ROOMS if '.' in name and not name.startswith('commands.')])
def test_messages_go_to_logging(name):
    "Commands print them; of the rest, only what is written for another program"
    prints = [n for n in ast.walk(ast.parse(MODULES[name].read_text(encoding='utf-8')))
        if isinstance(n, ast.Call) and ast.unparse(n.func) == 'print']
    assert len(prints) <= 3*(name == 'detection.predict')


def test_commands_exist():
    scripts = re.search(r'^console_scripts = (.+)$', (ROOT/'settings.ini').read_text(), re.M)[1].split()
    programs = ['cjm-yolox', *(f'yolox_{name}' for name in COMMANDS)]
    assert scripts == [f'{program}={PACKAGE}.commands.start:start' for program in programs]
    for name, module in COMMANDS.items():
        assert f'\ndef yolox_{name}(' in MODULES[module].read_text(encoding='utf-8')
