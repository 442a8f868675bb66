"What a page says about itself: to search engines, to previews of links, and to those who want to edit it"
import re
from html import escape

from notebooks import SITE, cfg, first_lines, notebooks, repository
from sidebar import FILES, GROUPS

DETECTOR = 'try/index' # Written by yolox_export, not by Sphinx
CARD = '_static/card.png', 'Drawn shapes, each in a box with its name and score'
UNLISTED = '<meta name="robots" content="noindex">'
# Where a missing page is asked for, its links start from the root of the site
FROM_THE_ROOT = f'''<script>if (!/404[.]html$/.test(location.pathname))
    document.head.append(Object.assign(document.createElement('base'), {{href: '{cfg.doc_baseurl}/'}}))</script>'''


def summary(page):
    "The summary of a page, without markup"
    if page in GROUPS: text = GROUPS[page][2]
    elif page in FILES: text = FILES[page][1]
    else: text = first_lines(notebooks()[page])[1]
    return re.sub(r'\[([^]]*)\]\([^)]*\)|`|\*', r'\1', text)


def edit_link(page):
    "Notebooks open in Visual Studio Code for the Web, since GitHub's own editor shows their JSON"
    if page in FILES: return repository(FILES[page][0], 'edit')
    place = f'{cfg.nbs_path.name}/{notebooks()[page].as_posix()}'
    return repository(place).replace('https://github.com', 'https://github.dev')


def tag(key, name, content): return f'<meta {key}="{name}" content="{escape(content)}">'


def describe(app, page, template, context, doctree):
    icon, tags = context['pathto']('_static/icon.png', 1), []
    if page in (*notebooks(), *FILES): context['theme_source_edit_link'] = edit_link(page)
    else: context['page_source_suffix'] = '' # Nothing to edit
    if page == '404': tags.append(FROM_THE_ROOT)
    tags.append(f'<link rel="icon" type="image/png" sizes="180x180" href="{icon}">')
    tags.append(f'<link rel="apple-touch-icon" href="{icon}">')
    if not doctree: tags.append(UNLISTED)
    else:
        about, title = summary(page), re.sub('<[^>]+>', '', context['title'])
        address = SITE if page == 'index' else f'{SITE}{page}.html'
        context['pageurl'] = address
        graph = dict(type='website', site_name=cfg.lib_name, title=title, description=about, url=address,
                     image=SITE + CARD[0])
        tags.append(tag('name', 'description', about))
        tags += [tag('property', f'og:{name}', content) for name, content in graph.items()]
        tags += [tag('property', 'og:image:alt', CARD[1]), tag('name', 'twitter:card', 'summary_large_image')]
    context['metatags'] = '\n    '.join(tags)


def sitemap(pages):
    addresses = sorted(SITE if page == 'index' else f'{SITE}{page}.html' for page in pages)
    urls = '\n'.join(f'  <url><loc>{address}</loc></url>' for address in addresses)
    return ('<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}\n</urlset>\n')
