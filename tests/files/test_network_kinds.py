import os
import subprocess
import sys
import zipfile

import pytest

from cjm_yolox_pytorch.files import network_kinds
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


@pytest.mark.parametrize('before', [None, 'false'])
def test_openvino_and_nncf_do_not_report_their_use(monkeypatch, before):
    telemetry = pytest.importorskip('openvino_telemetry.utils.opt_in_checker')
    monkeypatch.setattr(telemetry.os, 'environ', {} if before is None else dict(CI=before))
    monkeypatch.setattr(network_kinds.os, 'environ', telemetry.os.environ)
    checker = telemetry.OptInChecker()
    declined = telemetry.ConsentCheckResult.DECLINED
    monkeypatch.setattr(checker, 'consent_file', lambda: '/nowhere')
    assert checker.check(enable_opt_in_dialog=False, disable_in_ci=True) != declined
    with pytest.raises(OSError), network_kinds.unreported():
        assert checker.check(enable_opt_in_dialog=False, disable_in_ci=True) == declined
        raise OSError
    assert network_kinds.os.environ.get('CI') == before


def test_import_of_openvino_is_not_reported(tmp_path):
    for package in ('openvino', 'openvino_telemetry'): pytest.importorskip(package)
    code = '''from openvino_telemetry import Telemetry
from cjm_yolox_pytorch.files.network_kinds import import_extra
Telemetry.send_event = lambda self, *about, **_: print(self.consent, *about)
import_extra('openvino')'''
    known = {k: v for k, v in os.environ.items() if k not in ('CI', 'TF_BUILD', 'JENKINS_URL')}
    env = dict(known, HOME=str(tmp_path), LOCALAPPDATA=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith('False ov import') and not [*tmp_path.iterdir()]
