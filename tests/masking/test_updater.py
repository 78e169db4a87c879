"""How condemned units disappear, against a sort."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from secateur.masking.updater import interpolate_mask


@given(
    weights=st.lists(st.integers(-4, 4), min_size=1, max_size=30),
    parts=st.integers(1, 6),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_smallest_condemned_weights_go_first(weights: list[int], parts: int, seed: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, parts))
    rng = np.random.default_rng(seed)
    weight = np.array(weights, dtype=np.float32)
    now = rng.random(weight.size) < 0.8
    later = now & (rng.random(weight.size) < 0.5)
    condemned = [index for index in range(weight.size) if now[index] and not later[index]]
    count = len(condemned) * part // parts
    gone = set(rng.permutation(condemned)[: data.draw(st.integers(0, count))].tolist())
    mask = now & ~np.isin(np.arange(weight.size), list(gone))
    condemned.sort(key=lambda index: (index not in gone, abs(weight[index]), -index))
    expected = now.copy()
    expected[condemned[:count]] = False
    assert (interpolate_mask(weight, mask, (now, later), (part, parts)) == expected).all()
