"Packaging, from settings.ini"
from configparser import ConfigParser
from pathlib import Path
import re
from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

# PyPI shows the README outside the repository, so relative links become absolute
raw = f"{cfg['git_url']}/raw/{cfg['branch']}/"
readme = re.sub(r'\]\((?!http)', f']({raw}', Path('README.md').read_text(encoding='utf-8'))

extras = {key.removesuffix('_requirements'): cfg[key].split() for key in cfg if key.endswith('_requirements')}
extras['mobile'] = [p for name in ('ncnn', 'litert', 'executorch', 'coreml') for p in extras[name]]
# Tests exercise nearly every feature, so `dev` holds what each extra of the library itself needs, but for large ones
needed = 'dev', 'export', 'int8', 'video', 'track', 'hub', 'tensorboard', 'wandb'
extras['dev'] = [p for name in needed for p in extras[name]]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], url=cfg['git_url'], license='Apache-2.0',
    long_description=readme, long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']),
    package_data={cfg['lib_path']: ['py.typed', 'deploy/web_page/*']},
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points=dict(console_scripts=cfg['console_scripts'].split(),
                      nbdev=[f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]),
    zip_safe=False,
    classifiers=['Development Status :: 4 - Beta', 'Intended Audience :: Developers',
                 'Programming Language :: Python :: 3',
                 'Topic :: Scientific/Engineering :: Image Recognition'],
)
