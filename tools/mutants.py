"""Inject deliberate bugs into the assignment and the loss, one at a time, and count those that a check catches.

Needs `pip install cosmic-ray`, which makes the mutants. A run that was stopped continues with the same command. After
adding a test, `--again` retries the survivors. Example: python tools/mutants.py --times 300 --out runs/mutants.json
"""
import argparse
import ast
import difflib
import importlib
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

import hypothesis
import pytest
from covered import run_page

# Each check runs in a fork of this process, which has imported what takes long
for name in ('fastcore.test', 'matplotlib.pyplot', 'torch._dynamo', 'torch.testing', 'torchvision.transforms.v2'):
    importlib.import_module(name)

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'cjm_yolox_pytorch'
# Modules and their notebooks
MODULES = dict(
    boxes='01_boxes',
    assignment='03_assignment',
    assignment_sparse='04_assignment_sparse',
    simota='05_simota',
    sampling='06_sampling',
    loss='07_loss')


# ---- The checks, fast ones first; a mutant goes through them until one fails

def core(*names): return [f'tests/core/test_{name}.py' for name in names]


SLOW = ' or '.join(['compiled', 'ranks', 'loss_has_the_gradients_of_finite', 'slots_with_a_mask', 'export', 'bits'])
FAST = ['-k', f'not ({SLOW})']
# Arguments of pytest; none for the pages
STAGES = dict(
    goldens=core('goldens'),
    pages=[],
    loss=[*core('assignment', 'loss'), *FAST],
    laws=[*core('laws'), *FAST, '--hypothesis-profile', 'few'],
    contract=[*core('contract'), *FAST],
    numbers=[*core('numbers'), *FAST],
    ranks=[*core('loss'), '-k', 'ranks'],
    accelerator=core('accelerator'),
    all_laws=core('laws'),
    slow=[*core('loss', 'contract', 'numbers'), '-k', f'not ranks and ({SLOW})'])
PHASES = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
CHECKS = list(hypothesis.HealthCheck)
hypothesis.settings.register_profile('few', max_examples=8, derandomize=True, database=None, deadline=None,
                                     phases=PHASES, suppress_health_check=CHECKS)

# Bugs that `--prove` injects: module, code, replacement
DOUBLE_SIZE = 'boxes', '.exp()*(s/2)', '.exp()*s'
NO_WEIGHT = 'loss', 'bbox_loss_weight * ', 'bbox_loss_weight**0 * '
WRONG_LEVEL = 'loss', '(cell - first).remainder', 'cell.remainder'
SUM_FOR_MEAN = 'loss', '/dist.get_world_size()', ''
KNOWN = dict(
    goldens=DOUBLE_SIZE,
    pages=DOUBLE_SIZE,
    loss=NO_WEIGHT,
    laws=DOUBLE_SIZE,
    contract=NO_WEIGHT,
    numbers=DOUBLE_SIZE,
    ranks=SUM_FOR_MEAN,
    accelerator=WRONG_LEVEL,
    all_laws=DOUBLE_SIZE,
    slow=WRONG_LEVEL)


# ---- Mutants

CONFIG = """[cosmic-ray]
module-path = {paths}
timeout = 60.0
test-command = ""
[cosmic-ray.distributor]
name = "local"
"""
QUERY = 'select module_path, operator_name, occurrence, start_pos_row, start_pos_col from mutation_specs'


def listed(checkout):
    "Return the mutants (module, operator, occurrence) by module, and how many in annotations were left out."
    (checkout/'cosmic.toml').write_text(CONFIG.format(paths=[f'{PACKAGE}/{m}.py' for m in MODULES]))
    subprocess.run(['cosmic-ray', 'init', 'cosmic.toml', 'cosmic.sqlite'], cwd=checkout, check=True)
    rows = sqlite3.connect(checkout/'cosmic.sqlite').execute(QUERY).fetchall()
    spans = {m: annotations((checkout/PACKAGE/f'{m}.py').read_text()) for m in MODULES}
    mutants = {m: [] for m in MODULES}
    for path, operator, occurrence, *place in sorted(rows):
        module = Path(path).stem
        if any(begin <= tuple(place) < end for begin, end in spans[module]): continue
        mutants[module].append((module, operator, occurrence))
    return mutants, len(rows) - sum(map(len, mutants.values()))


def annotations(source):
    "Return the begin and end of every annotation."
    nodes = list(ast.walk(ast.parse(source)))
    notes = [getattr(node, name, None) for node in nodes for name in ('annotation', 'returns')]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in notes if n]


def mutate(checkout, module, operator, occurrence):
    "Write the mutant into `checkout`, and return the lines that differ, or None if it is not valid Python."
    path = checkout/PACKAGE/f'{module}.py'
    restore(checkout, module)
    before = path.read_text()
    subprocess.run(['cosmic-ray', 'apply', path, operator, str(occurrence)], check=True)
    after = path.read_text()
    try: compile(after, path, 'exec')
    except SyntaxError: return None
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm='')
    return '\n'.join(l for l in lines if not l.startswith(('---', '+++')))


def restore(checkout, module): shutil.copy(ROOT/PACKAGE/f'{module}.py', checkout/PACKAGE)


def drawn(mutants, times, seed):
    "Yield the mutants of each module in random order, and how many of them to try."
    total = sum(map(len, mutants.values()))
    for module, own in mutants.items():
        yield random.Random(f'{seed} {module}').sample(own, len(own)), -(-times*len(own)//total)


# ---- Checks in a fork

def run_stage(checkout, arguments):
    "Run the checks in this process, and return the exit status."
    sys.path[0] = str(checkout) # In place of this script's folder
    os.environ['PYTHONPATH'] = str(checkout)
    sys.modules['__main__'] = ModuleType('__main__') # Processes that tests start would begin with this script
    if arguments:
        os.chdir(checkout)
        return int(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-W', 'ignore', *arguments]))
    for page in MODULES.values(): run_page(checkout/f'nbs/{page}.ipynb', checkout)
    return 0


def run_limited(checkout, arguments, limit):
    "Run the checks with limits on memory and CPU time and the output in log.txt, and exit."
    status = 1
    try:
        os.setsid()
        out = os.open(checkout/'log.txt', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2): os.dup2(out, stream)
        resource.setrlimit(resource.RLIMIT_DATA, (8*2**30,)*2) # A mutant may ask for any amount
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit),)*2)
        status = run_stage(checkout, arguments)
    except BaseException as e: print(f'FAILED {type(e).__name__}: {e}')
    finally:
        sys.stdout.flush()
        os._exit(status)


def passes(checkout, arguments, limit):
    "Return whether the checks pass within `limit` seconds of CPU time, and how many they took."
    pid = os.fork()
    if pid == 0: run_limited(checkout, arguments, limit)
    end = time.time() + 10*limit # Other programs may keep the CPU busy
    done = 0
    try:
        while not done and time.time() < end:
            time.sleep(.02)
            done, status, used = os.wait4(pid, os.WNOHANG)
    finally:
        # The whole group: tests start processes
        try: os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError: pass
    if not done: _, status, used = os.wait4(pid, 0)
    return status == 0, used.ru_utime + used.ru_stime


def killer(checkout):
    "Return the line that names the check that failed."
    lines = (checkout/'log.txt').read_text(errors='replace').splitlines()
    failed = [l for l in lines if l.startswith(('FAILED', 'ERROR'))]
    return failed[-1][:200] if failed else 'out of time, or crashed'


def fate(checkout, limits):
    "Return the stage that catches the mutant in `checkout` (None if it survives), the check, and the seconds."
    spent = 0
    for stage, limit in limits.items():
        fine, seconds = passes(checkout, STAGES[stage], limit)
        spent += seconds
        if not fine: return dict(killed_by=stage, check=killer(checkout), seconds=round(spent, 1))
    return dict(killed_by=None, check=None, seconds=round(spent, 1))


def time_limits(checkout, stages):
    "Check that all stages pass without a mutant, and return the seconds that each may take with one."
    limits = {}
    for stage in stages:
        fine, seconds = passes(checkout, STAGES[stage], 1e6)
        if not fine: sys.exit(f'{stage} fails without a mutant:\n{(checkout/"log.txt").read_text()}')
        limits[stage] = 5*seconds + 10
        print(f'{stage}: {seconds:.1f} s', flush=True)
    return limits


def prove(checkout, stages):
    "Check that each stage catches a bug."
    for stage in stages:
        module, right, wrong = KNOWN[stage]
        path = checkout/PACKAGE/f'{module}.py'
        text = path.read_text()
        found = text.count(right)
        assert found == 1, f'{path.name} contains {right!r} {found} times instead of once: adapt KNOWN'
        path.write_text(text.replace(right, wrong))
        fine, _ = passes(checkout, STAGES[stage], 1e6)
        path.write_text(text)
        if fine: sys.exit(f'{stage} does not catch {wrong!r} in place of {right!r}')
        print(f'{stage}: {killer(checkout)}', flush=True)


# ---- All together

def identity(result): return result['module'], result['operator'], result['occurrence']


def save(results, path):
    temporary = path.with_suffix('.part')
    temporary.write_text(json.dumps(results, indent=1))
    temporary.replace(path)


def try_mutants(checkout, mutants, limits, args):
    "Try the mutants that are drawn, except those with a result in `args.out`; save and return all results."
    results = {}
    if args.out.exists(): results = {identity(r): r for r in json.loads(args.out.read_text())}
    invalid = 0
    for order, wanted in drawn(mutants, args.times, args.seed):
        for mutant in order:
            if wanted == 0: break
            old = results.get(mutant)
            if old is None or (args.again and not old['killed_by']):
                diff = mutate(checkout, *mutant)
                if old and old['diff'] != diff:
                    sys.exit(f'{args.out} belongs to another version of {mutant[0]}: choose another --out')
                if diff is None:
                    invalid += 1
                    continue
                if old: del results[mutant] # The newest comes last
                new = dict(zip(('module', 'operator', 'occurrence'), mutant), diff=diff, **fate(checkout, limits))
                results[mutant] = new
                save(list(results.values()), args.out)
                outcome = new['killed_by'] or 'SURVIVES'
                print(f'{len(results)} {mutant[0]} {new["seconds"]} s {outcome}', flush=True)
            wanted -= 1
        restore(checkout, mutant[0])
    print(f'{invalid} of those drawn were not valid Python and do not count')
    return list(results.values())


def print_summary(results):
    for module in MODULES:
        own = [r for r in results if r['module'] == module]
        caught = Counter(r['killed_by'] for r in own if r['killed_by'])
        stages = ', '.join(f'{n} by {s}' for s, n in caught.most_common())
        print(f'{module}: {caught.total()} of {len(own)} caught ({stages})')
    survivors = [r for r in results if not r['killed_by']]
    for r in survivors: print(f'\n{r["module"]} {r["operator"]} {r["occurrence"]}\n{r["diff"]}')
    caught = len(results) - len(survivors)
    share = caught/max(1, len(results))
    print(f'\ndeliberate bugs injected: {caught} of {len(results)} caught ({share:.1%})')


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    def option(name, text=None, **kwargs): parser.add_argument(name, help=text, **kwargs)
    option('--times', 'number of mutants (default: 300)', type=int, default=300)
    option('--seed', 'seed of the draw (default: 0)', type=int, default=0)
    option('--out', 'results file (default: runs/mutants.json)', type=Path, default=Path('runs/mutants.json'))
    option('--again', 'retry the survivors', action='store_true')
    option('--prove', 'only check that each stage passes, and catches a known bug', action='store_true')
    every = ', '.join(STAGES)
    option('--stages', f'some of {every} (default: all)', nargs='+', choices=STAGES, default=list(STAGES),
           metavar='STAGE')
    return parser.parse_args()


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) # Stops what is running
    if not args.prove and not shutil.which('cosmic-ray'):
        sys.exit('cosmic-ray is missing: run `pip install cosmic-ray`')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        ignore = shutil.ignore_patterns('runs', '__pycache__')
        for name in (PACKAGE, 'nbs', 'tests', 'tools'): shutil.copytree(ROOT/name, checkout/name, ignore=ignore)
        shutil.copy(ROOT/'pyproject.toml', checkout)
        if args.prove:
            time_limits(checkout, args.stages)
            return prove(checkout, args.stages)
        mutants, in_annotations = listed(checkout)
        counts = ', '.join(f'{len(own)} of {m}' for m, own in mutants.items())
        total = sum(map(len, mutants.values()))
        print(f'{total} mutants ({counts}), not counting {in_annotations} in annotations', flush=True)
        results = try_mutants(checkout, mutants, time_limits(checkout, args.stages), args)
    print_summary(results)


if __name__ == '__main__': main()
