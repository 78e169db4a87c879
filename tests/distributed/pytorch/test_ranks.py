import os
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from distributed.processes import run_ranks
from secateur.distributed.pytorch.ranks import Ranks, compute_digest
from secateur.errors import RankError


def collect() -> dict[str, Any]:
    ranks = Ranks.join()
    array, tensor = np.array([ranks.rank, 1]), torch.tensor([0.5, float(ranks.rank)])
    return {
        "rank": (ranks.rank, ranks.size),
        "gathered": ranks.gather({"rank": ranks.rank}),
        "sums": (ranks.add(array), ranks.add(tensor), array, tensor),
        "sent": (ranks.broadcast(f"from {ranks.rank}", 1), ranks.broadcast_array(array, 1)),
    }


def join_part() -> tuple[int, int] | str:
    group = dist.new_group([1, 2])
    try:
        ranks = Ranks.join(group)
    except RankError as error:
        return str(error)
    total = ranks.add(np.array([10 + dist.get_rank()]))
    assert ranks.broadcast(dist.get_rank(), 1) == 2
    return ranks.rank, int(total[0])


def disagree(values: list[dict[str, Any]]) -> str | None:
    ranks = Ranks.join()
    try:
        ranks.agree(values[ranks.rank])
    except RankError as error:
        return str(error)
    return None


def fail(failing: list[int]) -> str:
    ranks = Ranks.join()
    try:
        with ranks.fail_together("calibration"):
            if ranks.rank in failing:
                raise ValueError(f"no batches in {ranks.rank}")  # noqa: TRY301
    except (RankError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{ranks.gather(ranks.rank)}"


def hang() -> None:
    if Ranks.join().rank == 1:
        time.sleep(60)


def die() -> None:
    if Ranks.join().rank == 1:
        os._exit(3)


def test_ranks_gather_and_add() -> None:
    for rank, found in enumerate(run_ranks(collect, 3)):
        assert found["rank"] == (rank, 3)
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        array, tensor, *unchanged = found["sums"]
        np.testing.assert_array_equal(array, [3, 3])
        torch.testing.assert_close(tensor, torch.tensor([1.5, 3.0]))
        assert unchanged[0].tolist() == [rank, 1]
        assert unchanged[1].tolist() == [0.5, rank]
        assert found["sent"][0] == "from 1"
        assert found["sent"][1].tolist() == [1, 1]


def test_a_group_has_its_own_ranks() -> None:
    outside, *inside = run_ranks(join_part, 3)
    assert "rank 0 is not in the process group" in outside
    assert inside == [(0, 23), (1, 23)]


def test_without_a_process_group_there_is_one_rank() -> None:
    alone = Ranks.join()
    assert (alone.rank, alone.size, alone.group) == (0, 1, None)
    array = np.array([1, 2])
    total = alone.add(array)
    assert total is not array
    assert total.tolist() == [1, 2]
    assert alone.broadcast("a") == "a"
    assert alone.broadcast_array(array) is array
    alone.agree({"model": 1})
    with pytest.raises(ValueError, match="no batches"), alone.fail_together("calibration"):
        raise ValueError("no batches")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"model": 1}, {"model": 1}, {"model": 1}], None),
        (
            [{"model": 1, "configuration": 1}, {"model": 1, "configuration": 2}, {"model": 1, "configuration": 1}],
            "the same configuration, but rank 1 has another than ranks 0, 2",
        ),
        ([{"model": 1}, {"model": 2}, {"model": 2}], "the same model, but rank 0 has another than ranks 1, 2"),
        ([{"model": 1}, {}, {"model": 1}], "the same model, but rank 1 has"),
    ],
)
def test_ranks_that_disagree_all_raise(values: list[dict[str, Any]], message: str | None) -> None:
    messages = run_ranks(disagree, 3, values)
    if message is None:
        assert messages == [None] * 3
    else:
        assert all(message in found for found in messages), messages


def test_an_error_of_one_rank_is_raised_on_all() -> None:
    first, second, third = run_ranks(fail, 3, [1])
    assert first == third == "RankError: calibration failed on rank 1. Rank 1: ValueError: no batches in 1"
    assert second == "ValueError: no batches in 1"
    assert "failed on ranks 0, 2. Rank 0: ValueError: no batches in 0" in run_ranks(fail, 3, [0, 2])[1]
    assert run_ranks(fail, 2, []) == ["[0, 1]"] * 2


def test_digests_tell_values_apart() -> None:
    values: list[Any] = [
        None, 0, False, 0.0, "0", b"0", [0], {"a": 0}, {"a": [0]}, [[0], 0], [[0, 0]], np.zeros(1), np.zeros((1, 1)),
        torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16), torch.ones(1),
    ]  # fmt: skip
    digests = [compute_digest(value) for value in values]
    assert len({*digests}) == len(values)
    assert digests == [compute_digest(value) for value in values]
    with pytest.raises(TypeError, match="found object"):
        compute_digest(object())


def test_a_process_that_hangs_or_ends_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="rank 1: no result after 2 s"):
        run_ranks(hang, 2, limit=2)
    with pytest.raises(AssertionError, match="rank 1: the process ended without a result"):
        run_ranks(die, 2)
