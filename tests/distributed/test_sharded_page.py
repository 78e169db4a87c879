"""The blocks of the page on sharded models, as one program that torchrun starts."""

import os
import subprocess
import sys
from pathlib import Path

from coverage_of_processes import list_variables
from docs_runner import ROOT, blocks

LIMIT = 240


def test_the_page_runs_in_two_processes(tmp_path: Path) -> None:
    page = ROOT / "docs" / "how-to" / "sharded.md"
    program = tmp_path / "train.py"
    program.write_text("\n".join(block.code for block in blocks(page) if block.language == "python"), "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    variables = os.environ | list_variables()
    ended = subprocess.run(
        command, cwd=tmp_path, env=variables, timeout=LIMIT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("Pruned 50.00% of the weights") == 1
