"Pages run in Jupyter; and each tutorial leaves the process as it was, since other tests run all of them in one."
import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

PAGES = Path(__file__).parents[1]/'nbs'
TUTORIALS = PAGES/'tutorials'
MODULES = 'detector', 'shapes' # Written and imported by the pages


def hidden_cells(name): # Those of Python alone: imports, preparation and the last cell
    cells = json.loads((TUTORIALS/f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
    sources = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    return [s for s in sources if s.startswith('#| hide') and '!git' not in s]


def process(): return dict(os.environ), [*sys.path], os.getcwd(), torch.get_num_threads(), {*MODULES} & {*sys.modules}


@pytest.mark.parametrize('name', ['lightning', 'accelerate'])
def test_page_leaves_the_process_as_it_was(name, monkeypatch):
    *first, last = hidden_cells(name)
    monkeypatch.chdir(TUTORIALS)
    for module in MODULES: monkeypatch.delitem(sys.modules, module, raising=False)
    threads, page = torch.get_num_threads(), dict(torch=torch)
    torch.set_num_threads(threads + 1)
    try:
        before = process()
        for source in first: exec(source, page)
        for module in MODULES: (page['folder']/f'{module}.py').touch()
        for module in MODULES: importlib.import_module(module)
        assert all(a != b for a, b in zip(before, process(), strict=True))
        exec(last, page)
        assert process() == before and not page['folder'].exists()
    finally: torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize('page', ['tutorials/own_loop', 'tutorials/onnx_runtime', 'explanations/why_simota'])
def test_page_runs_in_jupyter(page):
    "With its slow cells, but not those that download"
    nbclient, nbformat = map(pytest.importorskip, ('nbclient', 'nbformat'))
    file = PAGES/f'{page}.ipynb'
    notebook = nbformat.read(file, as_version=4)
    def is_skipped(cell): return re.search(r'^#\| (net|cuda|eval: false)$', cell.source, re.M)
    notebook.cells = [cell for cell in notebook.cells if not is_skipped(cell)]
    nbclient.NotebookClient(notebook, timeout=900, resources=dict(metadata=dict(path=file.parent))).execute() # Raises
