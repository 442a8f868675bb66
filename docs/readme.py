"Make README.md from nbs/index.ipynb: prose as it is, code and output as blocks, figures as files. Run: make readme"
import base64
import json
from pathlib import Path

FIG_ALT = '#| fig-alt: ' # A figure without one is an error
root = Path(__file__).resolve().parents[1]
parts, pictures = [], root/'docs/images'


def text(value): return ''.join(value).rstrip('\n')


pictures.mkdir(exist_ok=True)
for old in pictures.glob('index-*'): old.unlink()
for cell in json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']:
    if cell['cell_type'] == 'markdown':
        parts.append(text(cell['source']))
        continue
    flags, lines = [], text(cell['source']).split('\n')
    while lines[0].startswith('#|'): flags.append(lines.pop(0))
    if '#| hide' in flags: continue
    if '#| echo: false' not in flags: parts.append('```python\n' + '\n'.join(lines) + '\n```')
    for output in cell['outputs']:
        data = output.get('data', {})
        kind = next((k for k in data if k.startswith('image/')), None)
        if kind:
            file = pictures/f'index-{len(list(pictures.glob("index-*"))) + 1}.{kind.removeprefix("image/")}'
            file.write_bytes(base64.b64decode(text(data[kind])))
            described = next(flag for flag in flags if flag.startswith(FIG_ALT))
            parts.append(f'![{described.removeprefix(FIG_ALT)}]({file.relative_to(root).as_posix()})')
        else: parts.append('```\n' + text(output.get('text') or data.get('text/plain')) + '\n```')

notice = '<!-- Made from nbs/index.ipynb by docs/readme.py: edit the notebook -->'
(root/'README.md').write_text('\n\n'.join([notice, *parts]) + '\n', encoding='utf-8')
