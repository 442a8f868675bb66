"Pages about the loops of other libraries run in full where those are installed; `make pages` leaves some cells out."
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2]/'nbs/tutorials'
RUN = '''
import json, sys
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
shell = CaptureShell()
for cell in read_nb(sys.argv[1]).cells:
    if cell.cell_type == 'code': shell.run(cell.source)
    if shell.exc: sys.exit(f'{cell.source}\\n{shell.exc!r}')
print(json.dumps({name: shell.user_ns[name] for name in ('one', 'plain', 'two', 'halves')}))
'''


@pytest.mark.slow
@pytest.mark.parametrize('library', ['lightning', 'accelerate'])
def test_losses_of_one_process_and_of_two_are_those_of_the_plain_loop(library):
    "In double precision rounding leaves differences of 1e-7; dividing by wrong numbers of positives, of 1e-2"
    if not importlib.util.find_spec(library): pytest.skip(f'needs {library}')
    command = [sys.executable, '-c', RUN, f'{library}.ipynb']
    done = subprocess.run(command, cwd=PAGES, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = json.loads(done.stdout.splitlines()[-1])
    assert len(losses['plain']) == 8 and losses['one'] == losses['plain']
    assert losses['two'] == pytest.approx(losses['halves'], abs=1e-3)
    assert abs(losses['two'][0] - losses['one'][0]) > .01 # Norm layers see fewer images
