"Where notebooks are, and what their first cell says"
import json
import re
from functools import cache
from pathlib import Path

from nbdev.config import get_config

cfg = get_config()
SITE = f'{cfg.doc_host}{cfg.doc_baseurl}/'
# Folders of nbs/ with modules; each imports only from those before it
FLOORS = ['.', 'commands', 'files', 'data', 'detection', 'evaluation', 'training', 'deploy']


def address(path):
    "The page of a notebook, as nbdev calls it: loss for 07_loss.ipynb"
    return path.with_name(re.sub(r'^\d+[a-z]*_', '', path.stem.lower())).as_posix()


@cache
def notebooks(folder='**'):
    "Notebooks by page, in the order of their numbers"
    found = (p.relative_to(cfg.nbs_path) for p in cfg.nbs_path.glob(f'{folder}/*.ipynb'))
    return {address(p): p for p in sorted(found) if not any(part.startswith('.') for part in p.parts)}


def repository(path, view='blob'): return f'{cfg.git_url}/{view}/{cfg.branch}/{Path(path).as_posix()}'


@cache
def first_lines(notebook):
    "Title and summary of a page, from the first cell: `# Title`, then `> Summary.` in one or more lines"
    cell = json.loads((cfg.nbs_path/notebook).read_text(encoding='utf-8'))['cells'][0]
    title, _, rest = ''.join(cell['source']).partition('\n')
    return title.removeprefix('# '), ' '.join(re.findall(r'^> (.+)$', rest, re.M))
