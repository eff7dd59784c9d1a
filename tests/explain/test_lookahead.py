"""Work ahead: in order, and no more of it than was asked for."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rg.explain.lookahead import in_order


def test_results_come_in_order_and_items_are_taken_as_needed():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    def square(number):
        time.sleep(0.002 * (number % 3))
        return number * number

    with ThreadPoolExecutor(4) as pool:
        results = in_order(pool, square, items(), 5)
        for number, result in enumerate(results):
            assert result == number * number
            assert len(taken) <= number + 1 + 5
    assert len(taken) == 20


def test_an_error_comes_in_its_turn_and_ends_the_rest():
    begun = []
    gate = threading.Event()

    def work(number):
        begun.append(number)
        if number == 2:
            raise ValueError("two")
        if number > 2:
            gate.wait()
        return number

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, range(100), 10)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(results)
        gate.set()
    assert len(begun) <= 4  # one more had begun; those that waited were cancelled
