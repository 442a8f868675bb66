"""Would a mistake be seen? Mutants of boxes, simota and loss have one each, and
have to fail a check.

Needs `pip install cosmic-ray`, which makes them. If it is stopped, the same
command goes on. After a new test, `--again` tries survivors once more.

Example: python tools/mutants.py --times 300 --out runs/mutants.json
"""
import argparse
import ast
import difflib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import fastcore.test
import hypothesis
import matplotlib.pyplot
import pytest
import torch._dynamo
import torch.testing
import torchvision.ops
import torchvision.transforms.v2
from covered import run_page

ROOT, PACKAGE = Path(__file__).resolve().parents[1], 'cjm_yolox_pytorch'
MODULES = dict(boxes='01_boxes', simota='04_simota', loss='05_loss') # And their notebooks
SLOW = 'compiled or ranks or gradcheck_of_the_whole or padded_slots or export or bits or workers'
# What a mutant goes through until a check fails, by seconds: what pytest is called with, or pages
STAGES = dict(goldens=['tests/test_goldens.py'], pages=list(MODULES.values()),
              loss=['tests/test_loss.py', '-k', f'not ({SLOW})'],
              laws=['tests/test_laws.py', '-k', f'not ({SLOW})', '--hypothesis-profile', 'few'],
              contract=['tests/core/test_contract.py', '-k', f'not ({SLOW})'],
              numbers=['tests/test_numbers.py', '-k', f'not ({SLOW})'],
              ranks=['tests/test_loss.py', '-k', 'ranks'],
              accelerator=['tests/test_accelerator.py'],
              all_laws=['tests/test_laws.py'],
              slow=['tests/test_loss.py', 'tests/core/test_contract.py', 'tests/test_numbers.py', '-k', f'not ranks and ({SLOW})'])
# Mistakes that each stage has to see: boxes of double size, a weight that does not count, cells of a wrong level, a sum in place of a mean
SIZE, WEIGHT = ('boxes', '.exp()*(s/2)', '.exp()*s'), ('loss', 'self.bbox_loss_weight * ', '')
LEVEL, MEAN = ('loss', '(cell - first).remainder', 'cell.remainder'), ('loss', '/dist.get_world_size()', '')
KNOWN = dict(goldens=SIZE, pages=SIZE, loss=WEIGHT, laws=SIZE, contract=WEIGHT, numbers=SIZE, ranks=MEAN, accelerator=LEVEL, all_laws=SIZE, slow=LEVEL)
hypothesis.settings.register_profile('few', max_examples=8, derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
                                     suppress_health_check=list(hypothesis.HealthCheck))


# ---- Mutants

def listed(checkout):
    "(module, operator, occurrence) of all mutants of each module, without those of annotations, and how many these are"
    (checkout/'cosmic.toml').write_text(f'[cosmic-ray]\nmodule-path = {[f"{PACKAGE}/{m}.py" for m in MODULES]}\ntimeout = 60.0\ntest-command = ""\n[cosmic-ray.distributor]\nname = "local"\n')
    subprocess.run(['cosmic-ray', 'init', 'cosmic.toml', 'cosmic.sqlite'], cwd=checkout, check=True)
    rows = sqlite3.connect(checkout/'cosmic.sqlite').execute('select module_path, operator_name, occurrence, start_pos_row, start_pos_col from mutation_specs').fetchall()
    mutants, in_annotations = {m: [] for m in MODULES}, 0
    spans = {m: annotations((checkout/PACKAGE/f'{m}.py').read_text()) for m in MODULES}
    for path, operator, occurrence, *place in sorted(rows):
        module = Path(path).stem
        if any(begin <= tuple(place) < end for begin, end in spans[module]): in_annotations += 1
        else: mutants[module].append((module, operator, occurrence))
    return mutants, in_annotations


def annotations(source):
    notes = [n for node in ast.walk(ast.parse(source)) for n in (getattr(node, 'annotation', None), getattr(node, 'returns', None)) if n]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in notes]


def mutate(checkout, module, operator, occurrence):
    "Write the mutant into `checkout`, and return the lines that differ; None if it is not even Python"
    path = checkout/PACKAGE/f'{module}.py'
    shutil.copy(ROOT/PACKAGE/path.name, path)
    before = path.read_text()
    subprocess.run(['cosmic-ray', 'apply', path, operator, str(occurrence)], check=True)
    after = path.read_text()
    try: compile(after, path, 'exec')
    except SyntaxError: return None
    return '\n'.join(l for l in difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm='') if not l.startswith(('---', '+++')))


def drawn(mutants, times, seed):
    "All mutants in random order, and how many are to be tried of each module"
    total = sum(map(len, mutants.values()))
    for module, own in mutants.items(): yield random.Random(f'{seed} {module}').sample(own, len(own)), -(-times*len(own)//total)


# ---- Checks

def run_stage(checkout, arguments):
    "Exit status of the checks, all in this process"
    sys.path[0] = str(checkout) # Was the folder of this script
    os.environ['PYTHONPATH'] = str(checkout)
    sys.modules['__main__'] = ModuleType('__main__') # Processes that tests start are not to begin with this script
    if arguments[0].startswith('tests'):
        os.chdir(checkout)
        return int(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-W', 'ignore', *arguments]))
    for page in MODULES.values(): run_page(checkout/f'nbs/{page}.ipynb', checkout)
    return 0


def passes(checkout, arguments, limit):
    "Whether checks pass within `limit` seconds of the processor, and how many they took, in a copy of this process, which has imported what takes long"
    begun, log = time.time(), checkout/'log.txt'
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2): os.dup2(out, stream)
            resource.setrlimit(resource.RLIMIT_DATA, (8*2**30,)*2) # A mutant may ask for any amount
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit),)*2)
            status = run_stage(checkout, arguments)
        except BaseException as e: print(f'FAILED {type(e).__name__}: {e}')
        finally:
            sys.stdout.flush()
            os._exit(status)
    try:
        while time.time() - begun < 10*limit: # Others may keep the processor busy
            time.sleep(.02)
            done, status, used = os.wait4(pid, os.WNOHANG)
            if done: break
    finally: # Also what it has started and left
        try: os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError: pass
    if not done: _, status, used = os.wait4(pid, 0)
    return status == 0, used.ru_utime + used.ru_stime


def killer(checkout):
    "The line that tells which check failed"
    lines = [l for l in (checkout/'log.txt').read_text(errors='replace').splitlines() if l.startswith(('FAILED', 'ERROR'))]
    return lines[-1][:200] if lines else 'time is up, or it crashed'


def fate(checkout, limits):
    "Stage that killed the mutant in `checkout` (None if it lives), the check, and seconds"
    spent = 0
    for stage, limit in limits.items():
        fine, seconds = passes(checkout, STAGES[stage], limit)
        spent += seconds
        if not fine: return dict(killed_by=stage, check=killer(checkout), seconds=round(spent, 1))
    return dict(killed_by=None, check=None, seconds=round(spent, 1))


def time_limits(checkout, stages):
    "Seconds that stages may take, all of which pass without a mutant"
    limits = {}
    for stage in stages:
        fine, seconds = passes(checkout, STAGES[stage], 1e6)
        if not fine: sys.exit(f'{stage} fails without a mutant:\n{(checkout/"log.txt").read_text()}')
        limits[stage] = 5*seconds + 10
        print(f'{stage}: {seconds:.1f} s', flush=True)
    return limits


def prove(checkout, stages):
    "Each stage sees a mistake"
    for stage in stages:
        module, right, wrong = KNOWN[stage]
        path = checkout/PACKAGE/f'{module}.py'
        text = path.read_text()
        assert text.count(right) == 1, f'{right} is no longer in {path.name}'
        path.write_text(text.replace(right, wrong))
        fine, _ = passes(checkout, STAGES[stage], 1e6)
        path.write_text(text)
        if fine: sys.exit(f'{stage} does not see {wrong!r} in place of {right!r}')
        print(f'{stage}: {killer(checkout)}', flush=True)


# ---- All together

def summary(results):
    for module in MODULES:
        own = [r for r in results if r['module'] == module]
        dead = Counter(r['killed_by'] for r in own if r['killed_by'])
        print(f'{module}: {dead.total()} of {len(own)} die ({", ".join(f"{n} by {s}" for s, n in dead.most_common())})')
    for r in results:
        if not r['killed_by']: print(f'\n{r["module"]} {r["operator"]} {r["occurrence"]}\n{r["diff"]}')
    dead = sum(r['killed_by'] is not None for r in results)
    print(f'\n{dead} of {len(results)} mutants die: {dead/max(1, len(results)):.1%}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--times', type=int, default=300, help='mutants (default: 300)')
    parser.add_argument('--seed', type=int, default=0, help='of the choice (default: 0)')
    parser.add_argument('--out', type=Path, default=Path('runs/mutants.json'), help='file of results (default: runs/mutants.json)')
    parser.add_argument('--again', action='store_true', help='try those that survived once more')
    parser.add_argument('--prove', action='store_true', help='only show that each stage passes, and sees a mistake')
    parser.add_argument('--stages', nargs='+', choices=STAGES, default=list(STAGES), metavar='STAGE', help=f'of {", ".join(STAGES)} (default: all)')
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) # Leave nothing running
    if not shutil.which('cosmic-ray'): sys.exit('cosmic-ray is missing: pip install cosmic-ray')
    results = json.loads(args.out.read_text()) if args.out.exists() else []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)/'checkout'
        for name in (PACKAGE, 'nbs', 'tests'): shutil.copytree(ROOT/name, checkout/name, ignore=shutil.ignore_patterns('runs', '__pycache__'))
        stages, shared = args.stages, ROOT.parent/'shared'
        if shared.exists(): (Path(folder)/'shared').symlink_to(shared.resolve())
        else: stages = [s for s in stages if s != 'goldens']
        mutants, in_annotations = listed(checkout)
        print(f'{sum(map(len, mutants.values()))} mutants ({", ".join(f"{len(own)} of {m}" for m, own in mutants.items())}), without {in_annotations} of annotations', flush=True)
        limits = time_limits(checkout, stages)
        if args.prove: return prove(checkout, stages)
        known, no_python = {(r['module'], r['operator'], r['occurrence']): r for r in results}, 0
        for order, wanted in drawn(mutants, args.times, args.seed):
            for mutant in order:
                if wanted == 0: break
                r = known.get(mutant)
                if r is None or (args.again and not r['killed_by']):
                    diff = mutate(checkout, *mutant)
                    if r and r['diff'] != diff: sys.exit(f'{args.out} is of another version of {mutant[0]}: choose another --out')
                    if diff is None:
                        no_python += 1
                        continue
                    new = dict(zip(('module', 'operator', 'occurrence'), mutant)) | dict(diff=diff) | fate(checkout, limits)
                    results = [old for old in results if old is not r] + [new]
                    temporary = args.out.with_suffix('.part')
                    temporary.write_text(json.dumps(results, indent=1))
                    temporary.replace(args.out)
                    print(f'{len(results)} {mutant[0]} {new["seconds"]} s {new["killed_by"] or "SURVIVES"}', flush=True)
                wanted -= 1
            shutil.copy(ROOT/PACKAGE/f'{mutant[0]}.py', checkout/PACKAGE)
    print(f'{no_python} drawn ones were not even Python, and not counted')
    summary(results)


if __name__ == '__main__': main()
