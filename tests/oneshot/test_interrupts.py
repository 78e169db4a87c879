"""Test that Ctrl-C is deferred, raised at once where it is allowed, and never lost."""

import signal

import pytest

from secateur.oneshot.interrupts import allow_interrupts, defer_interrupts


def press_ctrl_c(order: list[str], *words: str) -> None:
    """Send a signal before appending each word."""
    for word in words:
        signal.raise_signal(signal.SIGINT)
        order.append(word)


def test_an_interrupt_is_deferred_until_it_is_allowed() -> None:
    order: list[str] = []

    def act() -> None:
        with defer_interrupts():
            press_ctrl_c(order, "deferred")
            with allow_interrupts():
                order.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        act()
    assert order == ["deferred"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_raised_at_once_where_it_is_allowed() -> None:
    order: list[str] = []
    with pytest.raises(KeyboardInterrupt), defer_interrupts(), allow_interrupts():
        press_ctrl_c(order, "not reached")
    assert order == []


def test_a_deferred_interrupt_is_raised_at_the_end() -> None:
    order: list[str] = []
    with pytest.raises(KeyboardInterrupt), defer_interrupts():
        press_ctrl_c(order, "deferred")
    assert order == ["deferred"]


def test_a_program_that_ignores_interrupts_still_does() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    order: list[str] = []
    try:
        with defer_interrupts():
            press_ctrl_c(order, "ignored")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
    assert order == ["ignored"]


def test_a_handler_that_is_set_meanwhile_stays() -> None:
    previous = signal.getsignal(signal.SIGINT)
    caught: list[int] = []
    try:
        with defer_interrupts():
            signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert caught == [signal.SIGINT]


def test_cleanup_is_not_interrupted() -> None:
    order: list[str] = []

    def act() -> None:
        with defer_interrupts():
            try:
                with allow_interrupts():
                    press_ctrl_c(order, "not reached")
            finally:
                press_ctrl_c(order, "first cleanup", "second cleanup")

    with pytest.raises(KeyboardInterrupt) as caught:
        act()
    assert order == ["first cleanup", "second cleanup"]
    assert caught.value.__context__ is None


def test_a_custom_handler_is_called() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: calls.append(number))
    try:
        with defer_interrupts():
            signal.raise_signal(signal.SIGINT)
            assert calls == []
            with allow_interrupts():
                signal.raise_signal(signal.SIGINT)
        assert calls == [signal.SIGINT] * 2
    finally:
        signal.signal(signal.SIGINT, before)
