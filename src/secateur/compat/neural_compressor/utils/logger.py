"""Log to the logger ``neural_compressor``, which has no handlers."""

from __future__ import annotations

import logging
from pprint import pformat
from typing import Any

__all__ = ["DEBUG", "Logger", "debug", "error", "fatal", "info", "log", "warn", "warning"]

DEBUG = logging.DEBUG


class Logger:
    """Gives access to the logger.

    Examples:
        >>> Logger().get_logger().name
        'neural_compressor'
    """

    def get_logger(self) -> logging.Logger:
        """Return the logger."""
        return logging.getLogger("neural_compressor")


def log(level: int, msg: Any, *args: Any, **options: Any) -> None:
    """Log a message at a level; dictionaries get one line per entry.

    Args:
        level: Level of `logging`.
        msg: A format string, or any object.
        args: Values for the format string.
        options: Options of `logging.Logger.log`.
    """
    lines = pformat(msg).splitlines() if isinstance(msg, dict) else [msg]
    for line in lines:
        Logger().get_logger().log(level, line, *args, **options)


def debug(msg: Any, *args: Any, **options: Any) -> None:
    """Log at level DEBUG."""
    log(logging.DEBUG, msg, *args, **options)


def info(msg: Any, *args: Any, **options: Any) -> None:
    """Log at level INFO."""
    log(logging.INFO, msg, *args, **options)


def warning(msg: Any, *args: Any, **options: Any) -> None:
    """Log at level WARNING."""
    log(logging.WARNING, msg, *args, **options)


def error(msg: Any, *args: Any, **options: Any) -> None:
    """Log at level ERROR."""
    log(logging.ERROR, msg, *args, **options)


def fatal(msg: Any, *args: Any, **options: Any) -> None:
    """Log at level CRITICAL."""
    log(logging.CRITICAL, msg, *args, **options)


warn = warning
