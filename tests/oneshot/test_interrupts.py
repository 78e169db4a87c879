"""Test that Ctrl-C is deferred, raised at once where it is allowed, and never lost."""

import signal

import pytest

from secateur.oneshot.interrupts import allow_interrupts, defer_interrupts


def press_ctrl_c(then: list[str], *words: str) -> None:
    """Note each word after a signal."""
    for word in words:
        signal.raise_signal(signal.SIGINT)
        then.append(word)


def test_an_interrupt_waits_for_its_place() -> None:
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


def test_an_interrupt_is_raised_at_once_where_it_may() -> None:
    order: list[str] = []
    with pytest.raises(KeyboardInterrupt), defer_interrupts(), allow_interrupts():
        press_ctrl_c(order, "not reached")
    assert order == []


def test_an_interrupt_is_not_lost() -> None:
    order: list[str] = []
    with pytest.raises(KeyboardInterrupt), defer_interrupts():
        press_ctrl_c(order, "deferred")
    assert order == ["deferred"]


def test_clean_up_is_not_interrupted() -> None:
    order: list[str] = []

    def act() -> None:
        with defer_interrupts():
            try:
                with allow_interrupts():
                    press_ctrl_c(order, "not reached")
            finally:
                press_ctrl_c(order, "put", "back")

    with pytest.raises(KeyboardInterrupt) as caught:
        act()
    assert order == ["put", "back"]
    assert caught.value.__context__ is None


def test_a_handler_of_ones_own_is_called() -> None:
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
