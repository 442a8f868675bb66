"The sidebar, and the pages that are not notebooks: groups of modules, the changelog, how to contribute"
import re

from execnb.nbio import mk_cell
from notebooks import cfg, first_lines, notebooks, repository

# Pages by caption, in reading order
CAPTIONS = {
    'Start': ['index', 'tutorials/from_python', 'tutorials/command_line', 'tutorials/fine_tune', 'tutorials/own_loop',
              'tutorials/onnx_runtime', 'tutorials/many_gpus', 'tutorials/lightning', 'tutorials/accelerate'],
    'How-to': ['howto/custom_dataset', 'howto/dataset_formats', 'howto/few_images', 'howto/class_imbalance',
               'howto/small_objects', 'howto/out_of_memory', 'howto/several_gpus', 'howto/resume', 'howto/threshold',
               'howto/video', 'howto/browser', 'howto/int8', 'howto/migrating', 'howto/faq'],
    'Explanations': ['explanations/models', 'explanations/why_simota', 'explanations/fast_simota', 'howto/glossary'],
    'Reference': ['howto/cli', 'reference/use', 'reference/train', 'reference/data', 'reference/deploy',
                  'reference/core', 'reference/commands'],
    'Project': ['changelog', 'contributing', 'explanations/benchmarks', 'explanations/reliability',
                'explanations/differences', 'explanations/from_0_2', 'howto/cite'],
}
OUTSIDE = {'Source code': cfg.git_url, 'Report a problem': f'{cfg.git_url}/issues'}

# Groups of modules: name in the sidebar, title, summary, and headings with their folders
GROUPS = {
    'reference/use': ('Use', 'Using a detector', 'Detect objects in images, videos and streams, and use the results.',
                      {'': 'detection'}),
    'reference/train': ('Train', 'Training and evaluation', 'Train a detector, measure it, and inspect a dataset.',
                        {'Training': 'training', 'Evaluation': 'evaluation'}),
    'reference/data': ('Data', 'Data and files', 'Read, check, convert and augment datasets; read images and weights.',
                       {'Datasets': 'data', 'Images, videos and weights': 'files'}),
    'reference/deploy': ('Deploy', 'Deployment', 'Export a detector, quantize it, and compare it with the original.',
                         {'': 'deploy'}),
    'reference/core': ('Core', 'Core', 'The network, label assignment, the loss and inference. The core imports '
                       'torch, torchvision and numpy alone.', {'': '.'}),
    'reference/commands': ('Commands', 'Inside the commands', 'What all commands share: options, messages, signals '
                           'and exit codes.', {'': 'commands'}),
}
# Pages from the repository's own files
FILES = {'changelog': ('CHANGELOG.md', 'What is new in each version.'),
         'contributing': ('CONTRIBUTING.md', 'How to change a notebook, run the tests and report a bug.')}


def modules(folder): return [page for page in notebooks(folder) if page != 'index']


def toctree(*lines): return mk_cell('\n'.join(['```{toctree}', ':hidden:', *lines, '```']), 'markdown')


def contents():
    "The sidebar, as cells for the index"
    def entry(page):
        if page == 'index': return 'Home <self>' # As Furo calls it below a page
        return f'{GROUPS[page][0]} </{page}>' if page in GROUPS else f'/{page}'
    for caption, pages in CAPTIONS.items():
        outside = [f'{name} <{url}>' for name, url in OUTSIDE.items()] if caption == 'Project' else []
        yield toctree(f':caption: {caption}', '', *map(entry, pages), *outside)


def group(page):
    "The modules of a group with their summaries"
    _, title, summary, folders = GROUPS[page]
    yield f'# {title}\n\n> {summary}'
    for heading, folder in folders.items():
        if heading: yield f'## {heading}'
        lines = [(module, *first_lines(notebooks()[module])) for module in modules(folder)]
        yield '\n'.join(f'- [{title}](/{module}.ipynb): {summary}' for module, title, summary in lines)
    pages = [f'/{module}' for folder in folders.values() for module in modules(folder)]
    yield toctree('', *pages).source


def more_pages(links):
    "Text of each page that is not a notebook; `links` makes Sphinx check links to this site"
    for page in GROUPS: yield page, '\n\n'.join(group(page))
    for page, (file, _) in FILES.items():
        text = links((cfg.config_path/file).read_text(encoding='utf-8'), page)
        yield page, re.sub(r'\]\((?!https?:|project:|#)([^)]+)\)', lambda m: f']({repository(m[1])})', text)
