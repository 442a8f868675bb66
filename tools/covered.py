"""How much of the modules do pages and tests run, taken together?

Needs `pip install coverage`. Example: python tools/covered.py --out runs/coverage
"""
import argparse
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell

ROOT, PACKAGE = Path(__file__).resolve().parents[1], 'cjm_yolox_pytorch'
PAGES = sorted((ROOT/'nbs').rglob('*.ipynb'))
SETTINGS = """[run]
source = {root}/cjm_yolox_pytorch
omit = */_modidx.py
data_file = {folder}/data
parallel = true
concurrency = thread, multiprocessing
patch = subprocess, _exit
"""


def run_page(path, root=ROOT):
    "Execute the cells of a notebook in `__main__`, exported ones as what they are in their module: the same lines of the same file"
    module, lines = root/PACKAGE/path.relative_to(root/'nbs').parent/f'{path.stem.partition("_")[2]}.py', {}
    if module.exists():
        text = module.read_text(encoding='utf-8').splitlines(keepends=True)
        marks = [n for n, line in enumerate(text) if line.startswith('# %% ')] + [len(text)]
        lines = {text[a].split('#')[-1].strip(): (a + 1, ''.join(text[a+1:b])) for a, b in zip(marks, marks[1:])}
    main = ModuleType('__main__')
    main.__package__ = '.'.join(module.relative_to(root).parent.parts) # Modules import each other relative to it
    main.get_ipython = InteractiveShell.instance # For cells with magics
    os.chdir(path.parent)
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or re.search(r'^#\| *(eval: *false|slow|cuda|net)\b', source, re.M): continue
        if cell['id'] in lines:
            before, source = lines[cell['id']]
            name = str(module)
        else:
            before, name = 0, f'{path}#{cell["id"]}'
            linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name # Signatures are read from the source
        sys.modules['__main__'] = main # A shell that a cell starts takes its place
        exec(compile('\n'*before + TransformerManager().transform_cell(source), name, 'exec'), vars(main))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='folder for the report')
    parser.add_argument('--page', type=Path, help=argparse.SUPPRESS) # In a process of its own
    args = parser.parse_args()
    if args.page: return run_page(args.page)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/'settings').write_text(SETTINGS.format(root=ROOT, folder=folder))
        coverage = [sys.executable, '-m', 'coverage']
        def run(*words): return subprocess.run([*coverage, 'run', f'--rcfile={folder}/settings', *map(str, words)], cwd=ROOT, env={**os.environ, 'MPLBACKEND': 'agg', 'PYTHONPATH': str(ROOT)}).returncode
        failed = [str(page.relative_to(ROOT)) for page in PAGES if run(__file__, '--page', page)]
        for tests in (['tests', '--ignore', 'tests/deploy'], ['tests/deploy']):
            if run('-m', 'pytest', '-q', '-o', 'tmp_path_retention_policy=failed', *tests): failed.append(' '.join(tests))
        subprocess.run([*coverage, 'combine', '-q', f'--rcfile={folder}/settings'], check=True)
        report = subprocess.run([*coverage, 'report', '--show-missing', f'--rcfile={folder}/settings'], check=True, capture_output=True, text=True).stdout
    print(report)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out/'coverage.txt').write_text(report)
    if failed: sys.exit(f'These failed: {", ".join(failed)}')


if __name__ == '__main__': main()
