"The built site in a real browser: make test-docs"
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import imagesize
import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT/'_docs'
DETECTOR = 'try/index.html' # Written by yolox_export, not by Sphinx
PAGES = sorted({p.relative_to(SITE).as_posix() for p in SITE.rglob('*.html')} - {DETECTOR})
TOOLS = {'search.html', '404.html'} # Neither listed nor searched
ADDRESS = 'https://cj-mills.github.io/cjm-yolox-pytorch/'


def page_of(notebook):
    "loss.html for nbs/07_loss.ipynb"
    path = notebook.relative_to(ROOT/'nbs').with_suffix('.html').as_posix()
    return re.sub(r'(^|/)\d+[a-z]*_', r'\1', path)


FOUND = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(part.startswith('.') for part in p.parts))
NOTEBOOKS = {page_of(p): p for p in FOUND}
RUNTIME = Path(os.environ.get('ONNXRUNTIME_WEB', ROOT/'.venv-web/package'))
BROWSER = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome', 'chrome'])), None)
NO_BROWSER = 'needs a browser: apt-get install chromium, for example'
if not BROWSER and not os.environ.get('CI'): pytest.skip(NO_BROWSER, allow_module_level=True)


@pytest.fixture(scope='session')
def browser():
    assert BROWSER, NO_BROWSER
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='session')
def hosts():
    "Where the site is: on a server, and as files"
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield dict(http=f'http://127.0.0.1:{server.server_port}/', file=SITE.as_uri() + '/')
    server.shutdown()


@pytest.fixture(params=['http', 'file'])
def host(hosts, request): return hosts[request.param]


@pytest.fixture
def tab(browser, hosts):
    "An empty tab; in the end nothing may have gone wrong in it, and nothing been asked of others"
    context, wrong = browser.new_context(), []
    tab = context.new_page()
    tab.on('console', lambda message: message.type in ('error', 'warning') and wrong.append(message.text))
    tab.on('pageerror', lambda error: wrong.append(str(error)))
    def failed(request):
        if request.failure != 'net::ERR_ABORTED': wrong.append(f'failed: {request.url}') # Aborted: the page was left
    def requested(request):
        if not request.url.startswith((*hosts.values(), 'data:', 'blob:')): wrong.append(f'requested {request.url}')
    tab.on('requestfailed', failed)
    tab.on('request', requested)
    yield tab
    context.close()
    assert not wrong, wrong


def test_there_is_a_page_for_every_notebook():
    assert NOTEBOOKS and NOTEBOOKS.keys() <= {*PAGES}


def wait_for_formulas(tab): # Their number
    formulas = tab.locator('.math').count()
    if formulas:
        tab.wait_for_function('window.MathJax?.startup?.promise')
        tab.evaluate('MathJax.startup.promise')
    return formulas


@pytest.mark.parametrize('page', PAGES)
def test_page_loads(tab, host, page):
    tab.goto(host + page)
    assert tab.evaluate('[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)') == []
    undescribed = '[...document.images].filter(i => !i.alt || /[.](png|jpe?g)$/.test(i.alt)).map(i => i.src)'
    assert tab.evaluate(undescribed) == [], 'describe the figure with #| fig-alt:'
    if formulas := wait_for_formulas(tab):
        assert tab.locator('.math mjx-container').count() == formulas
        assert tab.locator('mjx-merror, [data-mjx-error]').count() == 0
    badges = [badge.get_attribute('href') for badge in tab.locator('a.badge').all()]
    place = f'main/{NOTEBOOKS[page].relative_to(ROOT).as_posix()}' if page in NOTEBOOKS else ''
    assert [url.endswith(place) for url in badges[-2:]] == [True]*2*(page in NOTEBOOKS)


@pytest.mark.parametrize('page', PAGES)
def test_nothing_overflows(tab, hosts, page):
    """Nothing is wider than the page. On a phone, pictures with many panels may scroll in their own box, and so may
    long tables, but not on the index, tutorials and how-to pages. On a wide screen nothing may."""
    tab.set_viewport_size(dict(width=390, height=844))
    tab.goto(hosts['http'] + page)
    tab.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
    wait_for_formulas(tab)
    assert tab.evaluate('document.documentElement.scrollWidth') == 390
    scrolling = '''[...document.querySelectorAll("article *")].filter(e => e.scrollWidth > e.clientWidth + 1
        && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)
        && (innerWidth > 390 || !e.querySelector("img.wide"))).map(e => e.outerHTML.slice(0, 200))'''
    if re.match('index|tutorials/|howto/', page): assert tab.evaluate(scrolling) == []
    assert tab.evaluate('''() => {
        const overflow = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX)
        const scrolls = e => e.tagName != "ARTICLE" && (overflow(e) || scrolls(e.parentElement))
        const sticksOut = e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e)
        return [...document.querySelectorAll("article *")].filter(sticksOut).map(e => e.outerHTML.slice(0, 200))
    }''') == []
    small = '[...document.querySelectorAll(".cell_output img")].filter(i => i.width < i.naturalWidth)'
    tab.wait_for_function(f'{small}.every(i => i.closest("a.full-size"))')
    wide = '[...document.querySelectorAll("pre")].filter(p => p.scrollWidth > p.clientWidth).map(p => p.innerText)'
    assert tab.evaluate(wide) == []
    tab.set_viewport_size(dict(width=1440, height=900))
    assert tab.evaluate(wide) == tab.evaluate(scrolling) == []
    assert tab.evaluate('document.documentElement.scrollWidth') == 1440


def test_wide_table_is_listed_on_a_phone(tab, hosts):
    tab.set_viewport_size(dict(width=390, height=844))
    tab.goto(hosts['http'] + 'index.html')
    cell = tab.locator('.listed td', has_text='40.5')
    assert cell.get_attribute('data-head') == 'AP on COCO'
    assert 'AP on COCO' in cell.evaluate('cell => getComputedStyle(cell, "::before").content')
    tree = tab.locator('.listed').first.aria_snapshot() # As a screen reader has it
    assert 'columnheader "AP on COCO"' in tree and 'cell' in tree
    tab.set_viewport_size(dict(width=1440, height=844))
    tab.locator('.listed').first.wait_for(state='detached')


def test_lines_that_break_on_a_phone(tab, hosts):
    """Rows of tables do not break, options neither, and code goes on right of where its line begins; what is copied
    stays the same. This holds in a fold that is opened later, too."""
    tab.set_viewport_size(dict(width=390, height=844))
    tab.goto(hosts['http'] + 'howto/threshold.html')
    rows = tab.locator('.cell_output pre', has_text='precision recall')
    height, line, count = rows.evaluate("""block => [block.scrollHeight, parseFloat(getComputedStyle(block).lineHeight),
        block.textContent.trim().split('\\n').length]""")
    assert count > 5 and height < line*(count + 3)
    options = tab.locator('code.literal .pre, .code-line .pre')
    broken = 'words => words.filter(word => word.getClientRects().length > 1).map(word => word.innerText)'
    assert options.count() > 5 and options.evaluate_all(broken) == []
    tab.set_viewport_size(dict(width=1440, height=844))
    tab.goto(hosts['http'] + 'assignment.html')
    tab.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
    copied = """blocks => blocks.map(block => {
        getSelection().selectAllChildren(block)
        return [block.textContent, getSelection().toString()].map(text => text.replace(/\\n+/g, '\\n').trim())
    })"""
    written = tab.locator('.cell_input pre').evaluate_all(copied)
    tab.set_viewport_size(dict(width=390, height=844))
    tab.locator('details .code-line').first.wait_for()
    assert tab.locator('.cell_input pre').evaluate_all(copied) == written
    lefts = """lines => lines.map(line => {
        const range = document.createRange()
        range.setStartAfter(line.querySelector('.indent'))
        range.setEndAfter(line.lastChild)
        const boxes = [...range.getClientRects()].filter(box => box.width > 1), rows = new Map()
        for (const {top, left} of boxes) {
            const row = Math.round(top/4)
            rows.set(row, Math.min(left, rows.get(row) ?? left))
        }
        return [...rows.values()]
    })"""
    broken = [found for found in tab.locator('.code-line:visible').evaluate_all(lefts) if len(found) > 1]
    assert len(broken) > 20 and all(left > first for first, *more in broken for left in more)


def test_wide_picture_fades_where_it_goes_on(tab, hosts):
    tab.set_viewport_size(dict(width=390, height=844))
    tab.goto(hosts['http'] + 'evaluation/metrics.html')
    picture = tab.wait_for_selector('.goes-on')
    picture.evaluate('picture => picture.scrollTo(9999, 0)')
    tab.wait_for_function('picture => !picture.classList.contains("goes-on")', arg=picture)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_picture_opens_in_full_size_where_it_is_shown_smaller(browser, hosts, scheme):
    context = browser.new_context(viewport=dict(width=390, height=844), has_touch=True, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(hosts['http'] + 'explanations/why_simota.html')
    link = tab.get_by_role('link', name='Full size: The ten best IoUs of each object, and their sum')
    shown, width = link.locator('img').evaluate('picture => [picture.width, picture.naturalWidth]')
    assert shown <= 358 < width and link.evaluate('link => getComputedStyle(link).cursor') == 'zoom-in'
    filters = link.locator('img').evaluate('picture => getComputedStyle(picture).filter')
    assert ('brightness' in filters) is (scheme == 'dark')
    tab.set_viewport_size(dict(width=844, height=390))
    link.wait_for(state='detached')
    tab.set_viewport_size(dict(width=390, height=844))
    link.tap()
    tab.wait_for_url('**/_images/*')
    assert tab.evaluate('[...document.images].map(picture => picture.naturalWidth)') == [width]
    context.close()


@pytest.fixture(scope='session')
def found(browser, hosts):
    "Anchors and links of each page"
    tab, found = browser.new_page(), {}
    for page in PAGES:
        tab.goto(hosts['http'] + page)
        found[page] = tab.evaluate('''[
            [...document.querySelectorAll("[id]")].map(e => e.id),
            [...document.querySelectorAll("a[href]")].map(a => a.getAttribute("href"))]''')
    tab.close()
    return found


def test_links_and_anchors_lead_somewhere(found):
    def leads(page, href):
        target, anchor = urldefrag(urljoin(page, href))
        if anchor and target in found: return unquote(anchor) in found[target][0]
        return (SITE/target).is_file() # Images included
    links = [(page, href) for page in PAGES for href in found[page][1]]
    inside = [(page, href) for page, href in links if not href.startswith(('http:', 'https:', 'mailto:'))]
    assert inside and [link for link in inside if not leads(*link)] == []
    assert [link for link in links if 'cj-mills.github.io' in link[1]] == [], 'such links should stay on this site'


def test_anchors_are_those_of_nbdev(found):
    "So that links into the original's site hold"
    modules = runpy.run_path(str(ROOT/'cjm_yolox_pytorch/_modidx.py'))['d']['syms'].values()
    places = [place.split('#') for names in modules for place, _ in names.values()]
    public = [(page, anchor) for page, anchor in places if anchor[0] != '_' and '.' not in anchor]
    public.append(('loss.html', 'yoloxloss.forward'))
    assert len(public) > 100 and [link for link in public if link[1] not in found[link[0]][0]] == []


def html(page): return (SITE/page).read_text(encoding='utf-8')


def test_sidebar_lists_every_page_once():
    tree = html('search.html').partition('class="sidebar-tree"')[2].partition('</aside>')[0] # On the index, # is itself
    captions = re.findall(r'caption-text">(.+?)<', tree)
    links = re.findall(r'class="reference internal" href="(.+?)"', tree)
    assert captions == ['Start', 'How-to', 'Explanations', 'Reference', 'Project']
    assert sorted(links) == sorted({*PAGES} - TOOLS)


@pytest.mark.parametrize('page', ['loss.html', 'training/demo.html', 'explanations/reliability.html'])
def test_current_page_is_in_view(tab, hosts, page):
    tab.set_viewport_size(dict(width=1440, height=700))
    tab.goto(hosts['http'] + page)
    current = tab.locator('.sidebar-tree .current-page > a')
    assert current.count() == 1
    assert 0 < current.bounding_box()['y'] < 660


def test_next_leads_through_every_page():
    page, seen = 'index.html', []
    while page:
        seen.append(page)
        link = re.search(r'class="next-page" href="(.+?)"', html(page))
        page = link and urljoin(page, link[1])
    assert len(seen) == len({*seen}) and {*seen} == {*PAGES} - TOOLS


@pytest.mark.parametrize('page, source', [('loss.html', 'nbs/07_loss.ipynb'), ('changelog.html', 'CHANGELOG.md'),
                                          ('data/coco.html', 'nbs/data/03_coco.ipynb'), ('reference/train.html', '')])
def test_pencil_leads_to_the_source(page, source):
    found = re.findall(r'href="(.+?)" rel="edit"', html(page))
    assert [url.partition('/main/')[2] for url in found] == [source]*bool(source) and (ROOT/source).exists()


def cells(page):
    "Label of the fold ('' without), code and whether something is shown, of each cell"
    for part in html(page).split('<div class="cell ')[1:]:
        fold = re.search(r'<p class="collapsed.*?>(.+?)</p>', part.partition('<pre>')[0])
        code = re.sub('<[^>]+>', '', part.partition('<pre>')[2].partition('</pre>')[0])
        yield fold[1] if fold else '', code.strip(), 'class="cell_output' in part


def test_what_only_checks_is_folded():
    parts = [(page, *cell) for page in PAGES for cell in cells(page)]
    checks = [shows for _, fold, _, shows in parts if fold == 'Checks']
    assert len(checks) > 150 and not any(checks)
    def only_checks(code): return code and all(re.match('test_|assert', line) for line in code.split('\n'))
    assert [(page, code) for page, fold, code, shows in parts if not fold and not shows and only_checks(code)] == []


def test_code_can_be_copied(tab, hosts):
    tab.goto(hosts['http'] + 'loss.html')
    assert tab.locator('.cell_input button.copybtn').count() == tab.locator('.cell_input pre').count() > 0
    assert tab.locator('.cell_output button.copybtn').count() == 0


@pytest.mark.parametrize('page', sorted({*PAGES} - TOOLS))
def test_page_describes_itself(page):
    head = html(page).partition('</head>')[0]
    address = ADDRESS if page == 'index.html' else ADDRESS + page
    tags = dict(re.findall(r'<meta (?:name|property)="([^"]+)" content="([^"]*)"', head))
    assert re.findall(r'<link rel="canonical" href="([^"]+)"', head) == [address] == [tags['og:url']]
    assert len(tags['description']) > 20 and tags['description'] == tags['og:description'] and tags['og:title']
    card, icon = SITE/tags['og:image'].removeprefix(ADDRESS), SITE/'_static/icon.png'
    assert imagesize.get(card) == (1200, 630) and card.stat().st_size < 300_000 and imagesize.get(icon) == (180, 180)
    assert f'<loc>{address}</loc>' in (SITE/'sitemap.xml').read_text(encoding='utf-8')


def test_tools_are_not_listed():
    listed = re.findall('<loc>(.+?)</loc>', (SITE/'sitemap.xml').read_text(encoding='utf-8'))
    assert not {ADDRESS + page for page in TOOLS} & {*listed} and ADDRESS + DETECTOR in listed
    assert all('content="noindex"' in html(page) for page in TOOLS)


def test_missing_page_has_its_style_at_any_depth(browser):
    "The public server answers with 404.html wherever a page is missing"
    context = browser.new_context()
    def answer(route):
        file = SITE/route.request.url.split('?')[0].removeprefix(ADDRESS)
        known = file.is_file()
        route.fulfill(path=file if known else SITE/'404.html', status=200 if known else 404)
    context.route(f'{ADDRESS}**', answer)
    tab = context.new_page()
    tab.goto(ADDRESS + 'deep/down/missing.html')
    assert tab.locator('h1').inner_text() == 'Page not found'
    style = 'getComputedStyle(document.querySelector(".sidebar-sticky")).position'
    assert tab.evaluate(style) == 'sticky'
    tab.get_by_role('link', name='start page').click()
    tab.wait_for_url(ADDRESS + 'index.html')
    context.close()


def hits(tab, host, words):
    "Links and excerpts of what the search finds, best first"
    tab.goto(host + 'index.html')
    tab.get_by_placeholder('Search').fill(words)
    tab.keyboard.press('Enter')
    tab.locator('#search-summary', has_text=words).wait_for()
    items = tab.locator('#search-results li').all()
    return [(item.locator('a').get_attribute('href'), item.locator('p').inner_text()) for item in items]


def test_search_finds(tab, host):
    hits(tab, host, 'YOLOXLoss')
    tab.locator('#search-results li a', has_text='YOLOXLoss').first.click()
    tab.wait_for_url('**/loss.html**')
    assert tab.locator('[id="yoloxloss"]').is_visible()


ANSWERS = {'custom dataset': 'howto/custom_dataset', 'overfitting': 'howto/faq', 'hyperparameters': 'howto/faq',
           'transfer learning': 'howto/faq', 'finetune': 'tutorials/fine_tune', 'TensorRT': 'howto/faq',
           'TorchScript': 'howto/faq', 'webcam': 'howto/video', 'faq': 'howto/faq', 'cite': 'howto/cite',
           'license': 'howto/faq', 'changelog': 'changelog', 'class imbalance': 'howto/class_imbalance',
           'OOM': 'howto/out_of_memory', 'out of memory': 'howto/out_of_memory',
           'dataset format': 'howto/dataset_formats', 'resume': 'howto/resume', 'small objects': 'howto/small_objects',
           'load_detector': 'detection/detector', 'tracking': 'detection/tracking', 'simota': 'simota'}


@pytest.mark.parametrize('words', ANSWERS)
def test_search_answers(tab, hosts, words):
    "The page that answers is among the first three hits"
    first = [href.partition('.html')[0] for href, _ in hits(tab, hosts['http'], words)[:3]]
    assert ANSWERS[words] in first


@pytest.mark.parametrize('words', ['why is AP 0', 'mAP is 0', 'AP near 0'])
def test_search_for_ap_0_leads_to_the_faq(tab, hosts, words):
    assert hits(tab, hosts['http'], words)[0][0] == 'howto/faq.html#why-is-ap-map-0-or-near-0'


def test_search_page_has_a_field_on_a_phone(tab, hosts):
    tab.set_viewport_size(dict(width=390, height=844)) # Where the sidebar is hidden
    tab.goto(hosts['http'] + 'search.html')
    tab.locator('article input[name=q]').fill('mosaic')
    tab.keyboard.press('Enter')
    tab.locator('#search-results li').first.wait_for()
    assert tab.locator('article input[name=q]').input_value() == 'mosaic'


def test_hits_lead_to_sections_and_excerpts_begin_at_the_hit(tab, hosts):
    found = hits(tab, hosts['http'], 'batch')
    assert len(found) > 10 and sum('#' in href for href, _ in found) > len(found)/2
    begun = [re.search('batch', excerpt, re.I) for _, excerpt in found]
    assert sum(bool(match) and match.start() < 60 for match in begun) > .8*len(found)


@pytest.mark.parametrize('words', ['Open in Colab', 'import annotations', '_bce(pred'])
def test_badges_imports_and_folds_are_not_searched(tab, hosts, words):
    assert not [text for _, text in hits(tab, hosts['http'], words) if words in text]


def test_unchanged_pages_are_not_built_again(tmp_path):
    "Pages come out the same each time, so that `make docs` need only build what has changed"
    code = ('import sys; sys.path.insert(0, "docs"); from pathlib import Path; import conf; '
            'conf.write_pages(Path(sys.argv[1]))')
    subprocess.run([sys.executable, '-c', code, tmp_path], cwd=ROOT, check=True, capture_output=True)
    built = ROOT/'.venv-docs/build/pages'
    def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*.ipynb')}
    new, old = contents(tmp_path), contents(built)
    assert len(new) > 100 and new == old


@pytest.mark.parametrize('foreign', ['pages', 'html'])
def test_only_the_folders_of_make_docs_are_written(tmp_path, foreign):
    "Since what is not of the site is deleted there"
    for name in ('mine.ipynb', 'mine.html'): (tmp_path/name).write_text('{}')
    folders = {name: ROOT/'.venv-docs/build'/name for name in ('pages', 'html')} | {foreign: tmp_path}
    command = [sys.executable, '-m', 'sphinx', '-c', 'docs', *folders.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and 'make docs' in done.stdout + done.stderr
    assert {p.name for p in tmp_path.glob('mine.*')} == {'mine.ipynb', 'mine.html'}


def test_dark(browser, hosts):
    def background(scheme):
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(hosts['http'] + 'index.html')
        colour = tab.evaluate('getComputedStyle(document.body).backgroundColor')
        tab.close()
        return sum(map(int, colour.strip('rgb()').split(',')[:3]))
    assert background('dark') < 150 < 600 < background('light')


@pytest.mark.skipif(not RUNTIME.exists(), reason='needs ONNX Runtime Web: make .venv-web/package')
def test_shapes_are_detected(browser, hosts):
    "With the files that the public server is to have; the browser checks their hashes"
    def answer(route):
        name, headers = route.request.url.rpartition('/')[2], {'Access-Control-Allow-Origin': '*'}
        route.fulfill(path=RUNTIME/'dist'/name, headers=headers)
    tab = browser.new_page()
    tab.route('https://cdn.jsdelivr.net/npm/onnxruntime-web@*/dist/*', answer)
    tab.goto(hosts['http'] + DETECTOR)
    tab.get_by_role('button', name='Drawing 1').click()
    tab.locator('#found li').first.wait_for()
    kinds = {text.rpartition(' ')[0] for text in tab.locator('#found li').all_text_contents()}
    assert kinds == {'disc', 'triangle', 'square', 'star', 'cross'} and not tab.locator('#problem').text_content()
    tab.set_viewport_size(dict(width=390, height=844))
    assert tab.evaluate('document.documentElement.scrollWidth') == 390
    tab.close()


def test_detector_is_linked(found):
    links = [(page, href) for page, (_, hrefs) in found.items() for href in hrefs if href.endswith(DETECTOR)]
    assert [page for page, _ in links] == ['deploy/web.html', 'howto/browser.html']
