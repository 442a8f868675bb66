"""Pages for Sphinx from the notebooks that nbdev has read (see skip_procs and procs in settings.ini).

No cell is run and no module imported.
"""
import ast
import base64
import copy
import io
import posixpath
import re
import tokenize
from functools import cache
from pathlib import Path

import imagesize # Sphinx brings it
from execnb.nbio import mk_cell
from fastcore.foundation import L
from nbdev.process import Processor
from nbdev.showdoc import showdoc_nm
from notebooks import FLOORS, SITE, address, cfg, notebooks, repository
from checks import only_checks
from sidebar import contents

EXPORTS = {'export', 'exporti', 'exports'}
# A figure's description unless `#| fig-alt:` gives it: its title
ALT_TEXT = r"title(?:=|\()'([^'{]+)'"


# Width over height from which a phone shows a picture by parts
WIDE = 2.2


def slug(title):
    "The anchor of a heading, as in Quarto"
    return re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', title.lower()).strip())


class Module:
    "Functions, classes and methods of a module, and what is said about them"
    def __init__(self, path):
        source = path.read_text(encoding='utf-8')
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        place = path.relative_to(cfg.lib_path.parent)
        self.name, self.file = '.'.join(place.with_suffix('').parts), place.as_posix()
        self.comments = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}
        self.nodes = {} # By full name: YOLOXLoss, YOLOXLoss.forward
        for node in ast.parse(source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.nodes.update({name: node for name in L(showdoc_nm(node))})
            if isinstance(node, ast.ClassDef): self._members(node)

    def _members(self, node):
        for part in node.body:
            if isinstance(part, ast.FunctionDef): self.nodes[f'{node.name}.{part.name}'] = part

    def kind(self, name):
        if isinstance(self.nodes[name], ast.ClassDef): return 'class'
        if any('prop' in ast.unparse(d) for d in self.nodes[name].decorator_list): return 'property'
        return 'method' if '.' in name else 'function'

    def bound(self, name): return self.kind(name) != 'function' # Its first argument is not passed

    def about(self, name):
        "The docstring, or the comment beside the name of a function"
        node = self.nodes[name]
        beside = self.comments.get(node.lineno, '') if node.body[0].lineno > node.lineno else ''
        return ast.get_docstring(node) or beside

    def arguments(self, name):
        "What a function takes, and a class: what its __init__ does, or its fields"
        node = self.nodes.get(f'{name}.__init__', self.nodes[name])
        if isinstance(node, ast.FunctionDef): return node.args
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        free = next((i for i, n in enumerate(fields) if n.target.id == '_'), len(fields)) # KW_ONLY
        args = [ast.copy_location(ast.arg(n.target.id, n.annotation), n) for n in fields]
        defaults = [made(n.value) for n in fields]
        return ast.arguments(posonlyargs=[], args=args[:free], vararg=None, kwonlyargs=args[free+1:], kwarg=None,
                             defaults=[d for d in defaults[:free] if d], kw_defaults=defaults[free+1:])

    def rows(self, name):
        "Names, types, defaults and comment of the arguments on each line, and of what is returned"
        node, a = self.nodes[name], self.arguments(name)
        named = a.posonlyargs + a.args
        defaults = [None]*(len(named) - len(a.defaults)) + a.defaults
        args = [*zip(named, defaults), (a.vararg, None), *zip(a.kwonlyargs, a.kw_defaults), (a.kwarg, None)]
        implied = {'_', *(['self', 'cls'] if self.bound(name) else [])}
        args = [(arg, default) for arg, default in args if arg and arg.arg not in implied]
        lines = {} # Arguments by line, whose comment is about all of them
        for arg, default in args: lines.setdefault(arg.lineno, []).append((arg, default))
        rows = []
        for line, found in lines.items():
            arg, default = found[-1]
            comment = self.comments.get((default or arg).end_lineno, '') if line > node.lineno else ''
            groups = [found] if comment else [[one] for one in found]
            rows += [([a.arg for a, _ in group], [a.annotation for a, _ in group], [d for _, d in group], comment)
                     for group in groups]
        end = range(max(lines, default=node.lineno) + 1, node.body[0].lineno) # ) -> Tensor: # comment
        returned = next((self.comments[n].removeprefix('-> ') for n in end if n in self.comments), '')
        return rows + [([], [getattr(node, 'returns', None)], [], returned)]

    def public(self):
        "Names that get an entry: those of methods only if something is said about them"
        for name in self.nodes:
            *owner, last = name.split('.')
            if last.startswith('_') and last != '__call__' or name.startswith('_'): continue
            if not owner or self.about(name) or any(comment for *_, comment in self.rows(name)): yield name

    def entry(self, name):
        "Signature, docstring and table of a symbol"
        returns, args = getattr(self.nodes[name], 'returns', None), copy.deepcopy(self.arguments(name))
        for n in ast.walk(args): n.annotation = None # Types are in the table
        implied = r'^(self|cls)\b(, )?' if self.bound(name) else '$'
        brackets = '' if self.kind(name) == 'property' else f'({re.sub(implied, "", ast.unparse(args))})'
        arrow = f' -> {ast.unparse(returns)}' if returns and brackets else ''
        head = f'{{py:{self.kind(name)}}} {name}{brackets}{arrow}'
        return '\n'.join([f'```{head}', f':module: {self.name}', '', self.about(name), '', *self.table(name), '```'])

    def table(self, name):
        "Rows about which something is known, as a table"
        def codes(texts): return ', '.join(f'`{text}`'.replace('|', r'\|') for text in dict.fromkeys(texts))
        def trees(nodes): return codes(ast.unparse(node) for node in nodes if node)
        lines = [('', 'Type', 'Default', '')]
        for names, kinds, defaults, comment in self.rows(name):
            row = codes(names) or '*returns*', trees(kinds), trees(defaults), escape(comment)
            if names or any(row[1:]): lines.append(row)
        if not any(comment or kind and name != '*returns*' for name, kind, _, comment in lines[1:]): return []
        columns = [column for column in zip(*lines) if any(column[1:])]
        head, *body = (f'| {" | ".join(line)} |' for line in zip(*columns))
        return ['', head, '|-'*len(columns) + '|', *body]


def made(value):
    "The default of a field: list() for field(default_factory=list), 1 for field(default=1)"
    named = {k.arg: k.value for k in getattr(value, 'keywords', [])}
    if 'default_factory' in named: return ast.copy_location(ast.Call(named['default_factory'], [], []), value)
    return named.get('default', value)


def escape(comment):
    "In comments only `code` is marked"
    parts = re.split('(`[^`]*`)', comment)
    def escaped(part):
        if part.startswith('`'): return part.replace('|', r'\|')
        return re.sub(r'([\\*_<>$\[\]~|])', r'\\\1', part)
    return ''.join(map(escaped, parts))


@cache
def module(page):
    path = cfg.lib_path/f'{page}.py'
    return Module(path) if path.exists() else None


@cache
def symbols():
    "Full names by short name, for links from backticks; a name that is also an argument links only within its page"
    modules = [m for folder in FLOORS for page in notebooks(folder) if (m := module(page))]
    trees = [m.arguments(name) for m in modules for name in m.nodes]
    arguments = {arg.arg for tree in trees for arg in ast.walk(tree) if isinstance(arg, ast.arg)}
    return {name: f'{m.name}.{name}' for m in reversed(modules) for name in m.public() if name not in arguments}


def links(text, page):
    "Links to pages, as one writes them in a notebook or in the README, become links that Sphinx checks"
    def checked(match):
        url, anchor = match.groups(default='')
        if url.startswith(SITE): path = url.removeprefix(SITE) or 'index.html'
        else: path = posixpath.join(posixpath.dirname(page), url) if url else page
        return f'](project:/{address(Path(posixpath.normpath(path)))}.ipynb{anchor})'
    return re.sub(rf'\]\(({SITE}[\w./-]*|[\w./-]+\.(?:html|ipynb))?(#[^)\s]+)?\)', checked, text)


def measure(output):
    "Give pictures a size that the browser knows before it has them, and tell whether one is wide"
    ratios = [0]
    for kind in {'image/jpeg', 'image/png'} & {*output.get('data', {})}:
        width, height = imagesize.get(io.BytesIO(base64.b64decode(''.join(output['data'][kind]))))
        known = output.setdefault('metadata', {}).setdefault(kind, {})
        known.setdefault('width', width)
        known.setdefault('height', round(height*known['width']/width))
        ratios.append(width/height)
    return max(ratios) > WIDE


def code_of(cell):
    "What folded code is called"
    kinds = {kind.partition('/')[0] for output in cell.get('outputs', []) for kind in output.get('data', {})}
    if not kinds: return 'Imports' if all(map(is_import, cell.parsed_())) else labeled('Code', cell)
    return 'Code of the figure' if 'image' in kinds else 'Code of the output'


def helpers(cell): return [n.name for n in cell.parsed_() if isinstance(n, (ast.FunctionDef, ast.ClassDef))]


def labeled(word, cell):
    "Source of f, g"
    return f'{word} of {", ".join(helpers(cell))}' if helpers(cell) else word


def is_import(node):
    "An import, also for type checkers alone, or what nbdev is told about it: `_all_ = [...]`"
    if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING': return all(map(is_import, node.body))
    return isinstance(node, (ast.Import, ast.ImportFrom)) or ast.unparse(node).startswith('_all_ = ')


def fold_of(cell): return cell.metadata.get('mystnb', {}).get('code_prompt_show') if cell.cell_type == 'code' else None


def joined(cells):
    "Neighboring imports are one fold, and so are neighboring checks"
    last = None
    for cell in cells:
        if last and fold_of(last) == fold_of(cell) in ('Imports', 'Checks') and not last.outputs:
            last.source, last.outputs = f'{last.source}\n\n{cell.source}', cell.outputs
        else:
            if last: yield last
            last = cell
    if last: yield last


def is_example(cell):
    if cell.cell_type != 'code' or {*EXPORTS, 'default_exp', 'hide'} & cell.directives_.keys(): return False
    return not shown(cell)


def shown(cell): return re.findall(r'^show_doc\(([\w.]+)', cell.source, re.M) if cell.cell_type == 'code' else []


class Page(Processor):
    "Cells as they are to be read"
    def begin(self):
        path = Path(self.nb.path_).resolve().relative_to(cfg.nbs_path)
        self.page, self.module = address(path), module(address(path))
        self.nb.metadata['language_info'] = dict(name='python', pygments_lexer='ipython3') # Knows !commands
        self.explained = {name for cell in self.nb.cells for name in shown(cell)}
        examples = [cell for cell in self.nb.cells if is_example(cell)]
        self.checks = {examples[n].id for n in only_checks(examples, pure=not self.module)}

        cells, todo = [], list(self.nb.cells)
        todo[0].source = re.sub(r'\A(# .+)', rf'\1\n\n{self.badges(path)}', todo[0].source)
        while todo:
            cell = todo.pop(0)
            if cell.cell_type == 'markdown': cells.append(mk_cell(links(cell.source, self.page), 'markdown'))
            elif shown(cell): cells += self.entries(shown(cell))
            elif EXPORTS & cell.directives_.keys():
                names = []
                while todo and getattr(todo[0], 'has_sd', False): names += shown(todo.pop(0))
                cells += [*self.entries(names), self.source(cell, names)]
            elif 'default_exp' not in cell.directives_: cells.append(self.example(cell))
        self.nb.cells = L(list(joined(cells)) + list(contents())*(self.page == 'index'))
        # nbdev gives random ids, which would make every page look changed
        for n, cell in enumerate(self.nb.cells): cell.id = str(n)

    def badges(self, path):
        "Below the title: the module, and the notebook"
        place = f'{cfg.nbs_path.name}/{path.as_posix()}'
        colab = repository(place).replace('https://github.com', 'https://colab.research.google.com/github')
        found = [(f'`{self.module.name}`', repository(self.module.file))] if self.module else []
        found += [('Open in Colab', colab), ('Notebook', repository(place))]
        return ' '.join(f'[{name}]({url}){{.badge}}' for name, url in found)

    def entries(self, names):
        "Each symbol, a class with those of its methods that are explained nowhere else"
        if not self.module: return # The tutorials that write `__init__` and `__main__`
        known, public = self.module.nodes, list(self.module.public())
        for name in sorted(names, key=lambda name: known[name].lineno):
            members = [n for n in public if n.startswith(f'{name}.') and n not in self.explained]
            yield from (mk_cell(self.module.entry(n), 'markdown') for n in [name, *members])

    def source(self, cell, names):
        "Code of the module: folded, unless it is constants"
        cell.outputs = []
        if all(map(is_import, cell.parsed_())): return self.folded(cell, 'Imports')
        if not helpers(cell): return self.example(cell)
        return self.folded(cell, 'Source' if names else labeled('Source', cell))

    def example(self, cell):
        options = cell.directives_
        wide = [measure(output) for output in cell.get('outputs', [])]
        cell.source = re.sub(r'\A(#\|.*\n)+', '', cell.source)
        title = re.search(ALT_TEXT, cell.source)
        if alt := ' '.join(options.get('fig-alt:', [])) or title and title[1]:
            cell.metadata['mystnb'] = dict(image=dict(alt=alt, classes='wide' if any(wide) else ''))
        if cell.id in self.checks: return self.folded(cell, 'Checks')
        if 'hide_input' in options or options.get('code-fold:') == ['true']: return self.folded(cell, code_of(cell))
        if options.get('echo:') == ['false']: cell.metadata['tags'] = ['remove-input']
        if options.get('output:') == ['false']: cell.metadata['tags'] = ['remove-output']
        return cell

    def folded(self, cell, label):
        cell.metadata['tags'] = ['hide-input']
        prompts = dict(code_prompt_show=label, code_prompt_hide=label)
        cell.metadata['mystnb'] = {**cell.metadata.get('mystnb', {}), **prompts}
        return cell
