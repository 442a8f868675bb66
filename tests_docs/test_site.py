"The built site in a real browser: make test-docs"
import os
import re
import runpy
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT/'_docs'
DETECTOR = 'try/index.html' # Written by yolox_export, not by Sphinx
PAGES = sorted({p.relative_to(SITE).as_posix() for p in SITE.rglob('*.html')} - {DETECTOR})
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
    found = [p.relative_to(ROOT/'nbs') for p in (ROOT/'nbs').rglob('*.ipynb')]
    notebooks = [p for p in found if '.ipynb_checkpoints' not in p.parts]
    missing = {re.sub(r'(^|/)\d+[a-z]*_', r'\1', p.with_suffix('.html').as_posix()) for p in notebooks} - {*PAGES}
    assert notebooks and not missing, missing


@pytest.mark.parametrize('page', PAGES)
def test_page_loads(tab, host, page):
    tab.goto(host + page)
    assert tab.evaluate('[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)') == []
    undescribed = '[...document.images].filter(i => !i.alt || /[.](png|jpe?g)$/.test(i.alt)).map(i => i.src)'
    assert tab.evaluate(undescribed) == [], 'describe the figure in the comment that opens its cell'
    if formulas := tab.locator('.math').count():
        tab.wait_for_function('window.MathJax?.startup?.promise')
        tab.evaluate('MathJax.startup.promise')
        assert tab.locator('.math mjx-container').count() == formulas
        assert tab.locator('mjx-merror, [data-mjx-error]').count() == 0
    assert page == 'search.html' or 'colab.research.google.com' in tab.locator('a.badge').first.get_attribute('href')


@pytest.mark.parametrize('page', PAGES)
def test_nothing_overflows_on_a_phone(tab, hosts, page):
    "Code, tables and formulas may be wider where they scroll by themselves"
    tab.set_viewport_size(dict(width=390, height=844))
    tab.goto(hosts['http'] + page)
    tab.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
    if tab.locator('.math').count(): tab.wait_for_function('document.querySelector("mjx-container")')
    assert tab.evaluate('document.documentElement.scrollWidth') == 390
    assert tab.evaluate('''() => {
        const overflow = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX)
        const scrolls = e => e.tagName != "ARTICLE" && (overflow(e) || scrolls(e.parentElement))
        const sticksOut = e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e)
        return [...document.querySelectorAll("article *")].filter(sticksOut).map(e => e.outerHTML.slice(0, 200))
    }''') == []


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


def test_search_finds(tab, host):
    tab.goto(host + 'index.html')
    tab.get_by_placeholder('Search').fill('YOLOXLoss')
    tab.keyboard.press('Enter')
    tab.locator('#search-results li a', has_text='YOLOXLoss').first.click()
    tab.wait_for_url('**/loss.html**')
    assert tab.locator('[id="yoloxloss"]').is_visible()


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
    assert [page for page, _ in links] == ['deploy/web.html']
