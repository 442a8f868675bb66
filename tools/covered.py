"""Measure how much of the modules the pages and tests run together.

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

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'cjm_yolox_pytorch'
# ONNX Runtime and OpenVINO get a process of their own, as in the Makefile
TESTS = [['tests', '--ignore', 'tests/deploy'], ['tests/deploy']]
SKIPPED = r'^#\| *(eval: *false|slow|cuda|net)\b'
SETTINGS = """[run]
source = {root}/cjm_yolox_pytorch
omit = */_modidx.py
data_file = {folder}/data
parallel = true
concurrency = thread, multiprocessing
patch = subprocess, _exit
"""


def module_path(page, root):
    "Return the module that a notebook is exported to."
    folder = root/PACKAGE/page.relative_to(root/'nbs').parent
    return folder/f'{page.stem.partition("_")[2]}.py'


def exported_cells(module):
    "Return the source of each cell of a module and the number of the line before it, by cell id."
    if not module.exists(): return {}
    text = module.read_text(encoding='utf-8').splitlines(keepends=True)
    marks = [n for n, line in enumerate(text) if line.startswith('# %% ')]
    spans = zip(marks, [*marks[1:], len(text)])
    return {text[a].split('#')[-1].strip(): (a + 1, ''.join(text[a+1:b])) for a, b in spans}


def page_namespace(module, root):
    "Return a module `__main__` for the cells of a page."
    main = ModuleType('__main__')
    # Exported cells have relative imports
    main.__package__ = '.'.join(module.relative_to(root).parent.parts)
    main.get_ipython = InteractiveShell.instance # For cells with magics
    return main


def run_page(page, root=ROOT):
    "Execute the cells of a notebook in `__main__`; exported cells count as lines of their module."
    module = module_path(page, root)
    exported = exported_cells(module)
    main = page_namespace(module, root)
    os.chdir(page.parent)
    for cell in json.loads(page.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or re.search(SKIPPED, source, re.M): continue
        sys.modules['__main__'] = main # A cell may start a shell, which replaces it
        if cell['id'] in exported: run_cell(main, str(module), *exported[cell['id']])
        else: run_example(main, f'{page}#{cell["id"]}', source)


def run_cell(main, file, before, source):
    "Execute `source` as the lines of `file` that follow line `before`."
    code = '\n'*before + TransformerManager().transform_cell(source)
    exec(compile(code, file, 'exec'), vars(main))


def run_example(main, name, source):
    # Signatures are shown from the source
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    run_cell(main, name, 0, source)


def measure(folder):
    "Run all pages and tests, and return the report and what failed."
    settings = f'--rcfile={folder}/settings'
    (folder/'settings').write_text(SETTINGS.format(root=ROOT, folder=folder))
    coverage = [sys.executable, '-m', 'coverage']
    environment = {**os.environ, 'MPLBACKEND': 'agg', 'PYTHONPATH': str(ROOT)}
    def fails(*words):
        command = [*coverage, 'run', settings, *map(str, words)]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode != 0
    pages = sorted((ROOT/'nbs').rglob('*.ipynb'))
    failed = [str(page.relative_to(ROOT)) for page in pages if fails(__file__, '--page', page)]
    pytest = ['-m', 'pytest', '-q', '-o', 'tmp_path_retention_policy=failed']
    failed += [' '.join(tests) for tests in TESTS if fails(*pytest, *tests)]
    subprocess.run([*coverage, 'combine', '-q', settings], check=True)
    command = [*coverage, 'report', '--show-missing', settings]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout, failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='folder for coverage.txt')
    parser.add_argument('--page', type=Path, help=argparse.SUPPRESS) # Runs one page, in a new process
    args = parser.parse_args()
    if args.page: return run_page(args.page)
    with tempfile.TemporaryDirectory() as folder: report, failed = measure(Path(folder))
    print(report)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out/'coverage.txt').write_text(report)
    if failed: sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__': main()
