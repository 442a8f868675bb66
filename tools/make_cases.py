"""Make tests/core/cases.pt: small assignments, solved once by the slow loop of nbs/03_assignment.ipynb.

Run from the root: python tools/make_cases.py
"""
import sys
from pathlib import Path

import torch

from cjm_yolox_pytorch.assignment import SimOTASettings
from cjm_yolox_pytorch.boxes import cell_centers, decode, grid_priors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tests'))
import conftest

FILE = Path(conftest.__file__).parent/'core/cases.pt'
CORNERS = grid_priors([(6, 6), (3, 3), (2, 2)], [8, 16, 32])
# Number of objects, and settings of the assigner
CASES = [
    (1, {}),
    (3, {}),
    (9, {}),
    (5, dict(center_radius=1.5, center_only=True, iou_eps=1e-8)),
    (4, dict(candidate_topk=3)),
    (4, dict(iou_weight=1., cls_weight=2.))]


def make_case(seed, n, settings, oracle):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g)*40 - 4
    boxes = decode(torch.randn(len(CORNERS), 4, generator=g)*.5, CORNERS)
    scores = torch.rand(len(CORNERS), 3, generator=g)
    gt_boxes = torch.cat([corner, corner + 4 + torch.rand(n, 2, generator=g)*30], 1)
    gt_labels = torch.randint(3, (n,), generator=g)
    priors = cell_centers(CORNERS)
    owner = oracle(scores, boxes, priors, gt_boxes, gt_labels, SimOTASettings(**settings))
    case = dict(settings=settings, priors=priors, boxes=boxes, scores=scores)
    return dict(case, gt_boxes=gt_boxes, gt_labels=gt_labels, owner=owner)


def main():
    oracle = conftest.read_oracle()
    cases = [make_case(seed, *case, oracle) for seed, case in enumerate(CASES)]
    torch.save(cases, FILE)
    print('matched cells:', [(case['owner'] >= 0).sum().item() for case in cases])


if __name__ == '__main__': main()
