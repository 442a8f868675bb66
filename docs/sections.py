"What the search finds: sections and symbols with their text, without badges, folded code and imports"
import json
import re

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx import addnodes

SKIPPED = (nodes.raw, nodes.comment, nodes.title, nodes.math_block, nodes.thead, addnodes.desc_signature,
           HideCodeCellNode)


def has_badges(node): return any('badge' in part.get('classes', []) for part in node.findall(nodes.reference))


def without_imports(code):
    return '\n'.join(line for line in code.splitlines() if not re.match(r'\s*(from \S+ )?import ', line))


def sections(node, found):
    "Append [anchor, title, prose, code] of each section and each symbol"
    if isinstance(node, nodes.section): found.append([node['ids'][0], node.next_node(nodes.title).astext(), '', ''])
    if isinstance(node, addnodes.desc):
        signature = node.next_node(addnodes.desc_signature)
        found.append([signature['ids'][0], signature['fullname'], '', ''])
    owner = len(found) - 1
    for part in node.children:
        if isinstance(part, (*SKIPPED, nodes.Text)) or isinstance(part, nodes.paragraph) and has_badges(part): continue
        if not isinstance(part, nodes.TextElement): sections(part, found)
        elif found:
            code = isinstance(part, nodes.literal_block)
            text = without_imports(part.astext()) if code else part.astext()
            found[owner][2 + code] += re.sub(r'\s+', ' ', text).strip() + ' '


class Index:
    "Sections by page; those of pages that were not written again are kept from the last time"
    def __init__(self, file):
        self.file, self.pages = file, {}
        if file.exists(): self.pages = json.loads(file.read_text(encoding='utf-8'))

    def add(self, app, doctree, page):
        self.pages[page] = []
        sections(doctree, self.pages[page])

    def write(self, pages, target):
        self.pages = {page: self.pages[page] for page in sorted(pages)}
        text = json.dumps(self.pages, ensure_ascii=False, separators=(',', ':'))
        self.file.write_text(text, encoding='utf-8')
        target.write_text(f'const SECTIONS = {text}\n', encoding='utf-8')
