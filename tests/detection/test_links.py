"Images are not written through links."
# ruff: noqa: F811 (fixtures are imported, and arguments bear their names)
import pytest
from fuzz import pixels
from hostile import armed, root # noqa: F401

from cjm_yolox_pytorch.detection.inputs import check_drawn_files, find_inputs


def test_output_links_that_lead_elsewhere(root):
    pixels(root, 'a.png', 'deep/b.png')
    (root/'out').mkdir()
    inputs = [str(root/'a.png'), str(root/'deep')]
    for link in ('out/a.png.jpg', 'out/deep'):
        (root/link).symlink_to(root.parent/'secret' if link.endswith('jpg') else root.parent)
        pairs, _ = find_inputs(inputs, root/'out')
        with pytest.raises(ValueError, match='leads out of .*/out: remove it'): check_drawn_files(pairs, root/'out')
        (root/link).unlink()
    assert len(find_inputs(inputs, root/'out')[0]) == 2


def test_link_to_itself_is_found(root):
    "Reading it is the error"
    pixels(root, 'a.png')
    (root/'loop.png').symlink_to('loop.png')
    assert len(find_inputs([str(root)], root/'out')[0]) == 2
