"The files of a run, and the folder that no other training may write into."
import errno
import os
from contextlib import nullcontext

import pytest

from cjm_yolox_pytorch.training.runs import lock_folder


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_drive_without_locks_is_used_with_a_warning(number, tmp_path, monkeypatch, caplog, recwarn):
    "Anything else that goes wrong with the lock is an error"
    fcntl = pytest.importorskip('fcntl')
    def flock(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, 'flock', flock)
    odd = number == errno.EIO
    with pytest.raises(OSError, match='Input/output') if odd else nullcontext(), lock_folder(tmp_path): pass
    own = 'is on a drive without locks' in caplog.text
    other = any('lock' in str(w.message) for w in recwarn) # filelock makes do without some locks, and warns
    assert (own or other) is not odd
    if number in (errno.ENOLCK, errno.EOPNOTSUPP): assert 'is on a drive without locks' in caplog.text
