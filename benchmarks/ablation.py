"""Measure what each idea behind the fast assigner is worth on a CPU.

The table has the milliseconds of the loss, forward and backward, without each idea.

Run: python benchmarks/ablation.py
"""
import statistics
from contextlib import ExitStack
from unittest.mock import patch

import torch
from loss import WORKLOADS, make_batch, markdown, ours, timed

from cjm_yolox_pytorch import assignment, assignment_sparse, loss, simota

ROUNDS = 11
WARMUP = 2


def whole_topk(values, k, largest=True, column=32):
    return values.topk(min(k, values.shape[-1]), largest=largest).values


def with_log1p(q, dim): return (-q).log1p_().clamp_(min=-100).sum(dim).neg_()
def from_one_tensor(maps, image, cell): return torch.cat(list(maps), 2).transpose(1, 2)[image, cell]


# Each idea with what replaces it: module, attribute, value
IDEAS = {
    'nothing': [],
    'only pairs that matter': [(simota, 'simota_sparse', assignment.simota)],
    'class maps are not flattened': [(module, 'take_cells', from_one_tensor) for module in (assignment_sparse, loss)],
    'log instead of log1p, at all classes': [(assignment_sparse, 'background_cost', with_log1p)],
    'topk by columns': [(module, 'topk_values', whole_topk) for module in (assignment, assignment_sparse)],
    'IoUs in groups': [(assignment_sparse, 'PAIRS_AT_ONCE', 2**40)]}


def timed_without(idea, run, batch):
    with ExitStack() as stack:
        for module, attribute, value in IDEAS[idea]: stack.enter_context(patch.object(module, attribute, value))
        return timed(run, batch, 'cpu')


def measure(workload):
    "Return the median milliseconds without each idea."
    C = WORKLOADS[workload][2]
    batch = make_batch(workload)
    run = ours(C, 'cpu')
    times = {idea: [] for idea in IDEAS}
    for _ in range(ROUNDS):
        for idea in IDEAS: times[idea].append(timed_without(idea, run, batch))
    return {idea: statistics.median(t[WARMUP:]) for idea, t in times.items()}


def main():
    medians = [measure(workload) for workload in WORKLOADS]
    rows = [[idea, *(f'{m[idea]:.1f}' for m in medians)] for idea in IDEAS]
    print(markdown(['without', *WORKLOADS], rows, texts=[0]))


if __name__ == '__main__': main()
