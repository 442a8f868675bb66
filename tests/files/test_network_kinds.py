import zipfile

import pytest

from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.files.network_kinds import network_kind


def test_damaged_archive_is_no_reason_for_a_traceback(tmp_path):
    "Zipfile finds the end of the archive, but not what should stand before it"
    for name, kind in (('a.pth', 'weights'), ('a.pt2', 'pt2')):
        with zipfile.ZipFile(tmp_path/name, 'w') as archive: archive.writestr('a/data.pkl', b'1')
        (tmp_path/name).write_bytes((tmp_path/name).read_bytes().replace(b'PK\x01\x02', b'PK\x01\x09'))
        assert network_kind(tmp_path/name) == kind
    message = 'a.pth is not a file of weights, or was cut off'
    with pytest.raises(ValueError, match=message): load_weights(tmp_path/'a.pth')
