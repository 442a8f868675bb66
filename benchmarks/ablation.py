"""What each idea of the fast assigner is worth on a CPU: milliseconds of the loss, forward and backward, when one is taken back.

Run: python benchmarks/ablation.py
"""
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent)) # For the benchmark beside this one
from loss import WORKLOADS, make_batch, ours, timed

from cjm_yolox_pytorch import assignment, assignment_sparse, loss, simota


def whole_topk(values, k, largest=True): return values.topk(min(k, values.shape[-1]), largest=largest).values
def with_log1p(q, dim): return (-q).log1p_().clamp_(min=-100).sum(dim).neg_()
def from_one_tensor(maps, image, cell): return torch.cat(list(maps), 2).transpose(1, 2)[image, cell]


TAKEN_BACK = {
    'nothing': [],
    'only pairs that matter': [(simota, 'simota_sparse', simota.simota)],
    'class maps stay where they are': [(module, 'take_cells', from_one_tensor) for module in (assignment_sparse, loss)],
    'log instead of log1p, at all classes': [(assignment_sparse, 'background_cost', with_log1p)],
    'the best by columns': [(module, 'topk_values', whole_topk) for module in (assignment, assignment_sparse)],
    'IoUs in groups': [(assignment_sparse, 'PAIRS_AT_ONCE', 2**40)]}

print(f'| taken back | {" | ".join(WORKLOADS)} |', '|---|' + '--:|'*len(WORKLOADS), sep='\n')
medians = {name: [] for name in TAKEN_BACK}
for workload, (_, _, C, _, _) in WORKLOADS.items():
    batch, run, times = make_batch(workload), ours(C, 'cpu'), {name: [] for name in TAKEN_BACK}
    for _ in range(11):
        for name, patches in TAKEN_BACK.items():
            with ExitStack() as stack:
                for module, attribute, value in patches: stack.enter_context(patch.object(module, attribute, value))
                times[name].append(timed(run, batch, 'cpu'))
    for name in TAKEN_BACK: medians[name].append(statistics.median(times[name][2:]))
for name, values in medians.items(): print(f'| {name} | {" | ".join(f"{v:.1f}" for v in values)} |')
