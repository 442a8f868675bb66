"Real datasets are read as they are."
from cjm_yolox_pytorch.data.splits import find_splits


def test_bccd_is_read_as_it_is(shared):
    splits = find_splits(shared/'data/bccd')
    assert list(splits) == ['test', 'train', 'trainval', 'val']
    read = {name: splits[name]() for name in ('train', 'val', 'test')}
    counts = {k: (len(a), len(a.labels) + len(a.dropped)) for k, a in read.items()}
    assert counts == dict(train=(205, 2805), val=(87, 1138), test=(72, 945))
    assert [len(a.dropped) for a in read.values()] == [1, 1, 0]
    assert all(a.names == ['Platelets', 'RBC', 'WBC'] for a in read.values())
