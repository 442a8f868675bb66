"The site that `make docs` builds: nbdev reads the notebooks, pages.py makes pages of them, Sphinx writes these"
import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

import sphinx
from docutils import nodes
from execnb.nbio import mk_cell, new_nb, write_nb
from sphinx import addnodes

sys.path.insert(0, str(Path(__file__).parent))
from head import DETECTOR, describe, sitemap
from nbdev.serve import proc_nbs
from notebooks import SITE, address, cfg, first_lines, notebooks
from pages import links, module, symbols
from sections import Index
from sidebar import more_pages

HERE = Path(__file__).parent
BUILD = HERE.parent/'.venv-docs/build'
project, author, copyright, release = cfg.lib_name, cfg.author, cfg.copyright, cfg.version
smartquotes = False # Shapes such as [..., 4] and options such as --out stay as they are
html_title = f'{project} {release}'
extensions = ['myst_nb', 'sphinx.ext.linkcode', 'sphinx_copybutton']
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'gfm' # Tables in outputs
myst_enable_extensions = ['dollarmath', 'attrs_inline']
myst_heading_anchors = 6
myst_heading_slug_func = 'pages.slug'

html_theme = 'furo'
html_baseurl = SITE # Of canonical addresses
pygments_dark_style = 'github-dark'
highlight_language = 'text' # Of blocks that do not say
html_logo = html_favicon = 'static/icon.svg'
html_static_path = ['static']
html_css_files = ['site.css']
html_js_files = ['site.js']
html_scaled_image_link = False # site.js links those that are shown smaller than they are
html_copy_source = html_show_sourcelink = html_use_index = html_domain_indices = False
templates_path, exclude_patterns = ['templates'], []
copybutton_selector = 'div.highlight:not(.cell_output div.highlight) > pre'
html_theme_options = dict(source_edit_link='set for each page', top_of_page_buttons=['edit'],
                          footer_icons=[dict(name='Source code on GitHub', url=cfg.git_url, html='GitHub')])

# Search: sections.py makes the index, static/search.js reads it with Sphinx's stemmer
stemmers = Path(sphinx.package_dir, 'search/minified-js')
html_static_path += [str(stemmers/f'{name}-stemmer.js') for name in ('base', 'english')]
html_additional_pages = {'search': 'search.html', '404': '404.html'}

# Formulas: one file with fonts and all, from an installed package
mathjax = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent
html_static_path += [str(mathjax/'static/mathjax/tex-svg.js')]
mathjax_path = 'tex-svg.js'

index = Index(BUILD/'sections.json')

add_module_names = False
toc_object_entries_show_parents = 'domain'


def write_pages(folder):
    "Every page as a notebook in `folder`, which Sphinx reads; pages that stayed the same are not touched"
    made = Path(proc_nbs(n_workers=0, force=True))
    for notebook in sorted(made.rglob('*.ipynb')): notebook.rename(address(notebook) + '.ipynb')
    for page, text in more_pages(links):
        file = made/f'{page}.ipynb'
        file.parent.mkdir(exist_ok=True)
        write_nb(new_nb([mk_cell(text, 'markdown', id='0')]), file)
    new = {p.relative_to(made): p.read_bytes() for p in made.rglob('*.ipynb')}
    for old in folder.rglob('*.ipynb'):
        if old.relative_to(folder) not in new: old.unlink()
    for path, content in new.items():
        file = folder/path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_bytes() != content: file.write_bytes(content)


def what_all_pages_share():
    "How pages are made, where names link to, and the sidebar: if one changes, all pages are made again"
    code = [p.read_text(encoding='utf-8') for p in sorted(HERE.glob('*.py'))]
    titles = [(page, first_lines(notebook)) for page, notebook in notebooks().items()]
    return hashlib.sha256(repr([code, sorted(symbols().items()), titles]).encode()).hexdigest()


def linkcode_resolve(domain, info):
    m = module('/'.join(info['module'].split('.')[1:]))
    return f'{cfg.git_url}/blob/{cfg.branch}/{m.file}#L{m.nodes[info["fullname"]].lineno}'


def above(node):
    while node := node.parent: yield node


def connect(app, doctree):
    "Anchors as nbdev has them (loss.html#yoloxloss.forward), and links from names in backticks"
    objects, slugs = app.env.get_domain('py').objects, app.env.metadata[app.env.docname].setdefault('myst_slugs', {})
    for signature in doctree.findall(addnodes.desc_signature):
        name = signature['fullname']
        anchor, full = name.lower(), f'{signature["module"]}.{name}'
        signature['ids'] = [anchor]
        slugs[anchor] = None, anchor, name
        objects[full] = objects[full]._replace(node_id=anchor)
    own = module(app.env.docname)
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().partition('(')[0]
        full = f'{own.name}.{name}' if own and name in own.public() else symbols().get(name)
        linked = nodes.reference, nodes.title, addnodes.pending_xref
        if full and not any(isinstance(node, linked) for node in above(literal)):
            options = dict(refexplicit=True, refwarn=True, refdoc=app.env.docname)
            link = addnodes.pending_xref('', refdomain='py', reftype='obj', reftarget=full, **options)
            literal.replace_self(link)
            link += literal


def write_detector(out):
    "The page of `yolox_export --format web`, with the network and the drawings in docs/try (see make.py there)"
    page, parts, folder = cfg.lib_path/'deploy/web_page', HERE/'try', out/'try'
    folder.mkdir(exist_ok=True)
    for file in (page/'detector.js', *parts.glob('*.onnx'), *parts.glob('*.js'), *parts.glob('*.jpg')):
        shutil.copy(file, folder)
    index, about = (p.read_text(encoding='utf-8') for p in (page/'index.html', parts/'about.json'))
    own, more = '<script src="detector.js"></script>', '<script src="samples.js"></script>'
    index = index.replace('json">{}<', f'json">{about}<').replace(own, f'{own}\n{more}')
    (folder/'index.html').write_text(index, encoding='utf-8')


def finish(app, error):
    "What is no page of Sphinx: the index of the search, the map for search engines, the detector"
    if error: return
    out, pages = Path(app.outdir), app.env.found_docs
    for file in out.rglob('*.html'): # Of notebooks that are gone
        page = file.relative_to(out).with_suffix('').as_posix()
        if page not in {*pages, *html_additional_pages}: file.unlink()
    index.write(pages, out/'_static/sections.js')
    write_detector(out)
    (out/'sitemap.xml').write_text(sitemap([*pages, DETECTOR]), encoding='utf-8')


def setup(app):
    for folder in map(Path, (app.srcdir, app.outdir)):
        cure = 'files that are not of the site are deleted there: build it with `make docs`'
        if BUILD not in folder.parents: raise ValueError(f'{folder}: {cure}')
    write_pages(Path(app.srcdir))
    app.add_config_value('shared', what_all_pages_share(), 'env', types=[str])
    app.connect('builder-inited', lambda app: setattr(app.builder, 'search', False)) # Ours stands in
    app.connect('doctree-read', connect, priority=400) # Before Sphinx collects anchors
    app.connect('doctree-resolved', index.add)
    app.connect('html-page-context', describe)
    app.connect('build-finished', finish)
