"Laws of letterboxing that hold for every size."
import hypothesis.strategies as st
import torch
from hypothesis import given
from torch.testing import assert_close

from cjm_yolox_pytorch.files.letterbox import letterbox_scale, letterbox_size, unletterbox

PHOTOS = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
CANVASES = st.tuples(st.integers(1, 4096), st.integers(1, 4096))


@given(PHOTOS, CANVASES, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_letterboxing_is_undone_by_unletterboxing(image_hw, canvas_hw, at):
    h, w = image_hw
    boxes = torch.tensor([[at[0]*w, at[1]*h, at[2]*w, at[3]*h]], dtype=torch.float64)
    there = boxes*letterbox_scale(image_hw, canvas_hw)
    size = letterbox_size(image_hw, canvas_hw)
    assert (there <= torch.tensor([size[1], size[0]]*2)*(1 + 1e-6)).all()
    assert all(1 <= n <= c for n, c in zip(size, canvas_hw)) and any(n == c for n, c in zip(size, canvas_hw))
    assert_close(unletterbox(there, image_hw, canvas_hw), boxes, rtol=1e-5, atol=1e-3)
    assert_close(unletterbox(there*3 - 1e5, image_hw, canvas_hw), boxes*0)
