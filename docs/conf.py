"The site that `make docs` builds: nbdev reads the notebooks, pages.py makes pages of them, Sphinx writes these"
import importlib.util
import shutil
import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

sys.path.insert(0, str(Path(__file__).parent))
from nbdev.serve import proc_nbs
from pages import address, cfg, module, symbols

# The notebooks as pages, in a folder that Sphinx takes for the source
processed = Path(proc_nbs(n_workers=0, force=True))
for notebook in sorted(processed.rglob('*.ipynb')): notebook.rename(address(notebook) + '.ipynb')

project, author, copyright, release = cfg.lib_name, cfg.author, cfg.copyright, cfg.version
smartquotes = False # Shapes such as [..., 4] and options such as --out stay as they are
html_title = f'{project} {release}'
extensions = ['myst_nb', 'sphinx.ext.linkcode']
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'gfm' # Tables in outputs
myst_enable_extensions = ['dollarmath', 'attrs_inline']
myst_heading_anchors = 6
myst_heading_slug_func = 'pages.slug'

html_theme = 'furo'
pygments_dark_style = 'github-dark'
html_static_path = ['static']
html_css_files = ['site.css']
html_favicon = 'static/icon.svg'
# Search summaries are fetched, which pages opened as files may not do
no_summary = 'if (location.protocol == "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false'
html_js_files = [(None, dict(body=no_summary))]
html_copy_source = html_show_sourcelink = html_use_index = html_domain_indices = False
templates_path, exclude_patterns = [], []

# Formulas: one file with fonts and all, from an installed package
mathjax = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent
html_static_path += [str(mathjax/'static/mathjax/tex-svg.js')]
mathjax_path = 'tex-svg.js'

add_module_names = False
toc_object_entries_show_parents = 'domain'


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


def write_detector(app, error):
    "The page of `yolox_export --format web`, with the network and the drawings in docs/try (see make.py there)"
    page, parts, folder = cfg.lib_path/'deploy/web_page', Path(__file__).with_name('try'), Path(app.outdir)/'try'
    folder.mkdir(exist_ok=True)
    for file in (page/'detector.js', *parts.glob('*.onnx'), *parts.glob('*.js'), *parts.glob('*.jpg')):
        shutil.copy(file, folder)
    index, about = (p.read_text(encoding='utf-8') for p in (page/'index.html', parts/'about.json'))
    own, more = '<script src="detector.js"></script>', '<script src="samples.js"></script>'
    index = index.replace('json">{}<', f'json">{about}<').replace(own, f'{own}\n{more}')
    (folder/'index.html').write_text(index, encoding='utf-8')


def setup(app):
    app.connect('doctree-read', connect, priority=400) # Before Sphinx collects anchors
    app.connect('build-finished', write_detector)
