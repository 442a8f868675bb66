"Make tests/cases.pt: small assignments as the oracle of nbs/03_assignment.ipynb finds them. Run from the root: python tools/make_cases.py"
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tests'))
import conftest
from cjm_yolox_pytorch.boxes import cell_centres, decode, grid_priors

oracle = conftest.read_oracle()
cases, corners = [], grid_priors([(6, 6), (3, 3), (2, 2)], [8, 16, 32])
for seed, settings in enumerate([{}, {}, {}, dict(center_radius=1.5, center_only=True, iou_eps=1e-8), dict(candidate_topk=3), dict(iou_weight=1., cls_weight=2.)]):
    g = torch.Generator().manual_seed(seed)
    n = [1, 3, 9, 5, 4, 4][seed]
    corner = torch.rand(n, 2, generator=g)*40 - 4
    case = dict(settings=settings, priors=cell_centres(corners), boxes=decode(torch.randn(49, 4, generator=g)*.5, corners), scores=torch.rand(49, 3, generator=g),
                gt_boxes=torch.cat([corner, corner + 4 + torch.rand(n, 2, generator=g)*30], 1), gt_labels=torch.randint(3, (n,), generator=g))
    names = dict(center_radius='radius', candidate_topk='topk', iou_eps='eps')
    case['owner'] = oracle(case['scores'], case['boxes'], case['priors'], case['gt_boxes'], case['gt_labels'], **{names.get(k, k): v for k, v in settings.items()})
    cases.append(case)
torch.save(cases, ROOT/'tests/cases.pt')
print([(c['owner'] >= 0).sum().item() for c in cases])
