"""Reading and writing in threads: in order, bounded, ended, and with no error lost."""

import threading

import pytest

from lensprep.errors import StorageError
from lenstrain.scoring.background import AHEAD, Background
from tests.waiting import wait_until


def running():
    """Its threads that have not ended; loaders of other tests may have some too."""
    ours = ("lenstrain-columns", "lenstrain-parts")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(ours)]


@pytest.fixture(autouse=True)
def threads_end():
    yield
    assert not running()


def test_all_is_done_in_order_before_the_block_ends():
    done = []
    with Background() as background:
        for number in range(20):
            found = background.read(lambda number=number: number)
            background.write(lambda found=found: done.append(found.result()))
    assert done == list(range(20))


def test_a_slow_writer_holds_up_neither_reading_nor_the_caller_until_two_wait():
    free, done = threading.Event(), []

    def write(number):
        assert free.wait(60)
        done.append(number)

    with Background() as background:
        for number in range(AHEAD):
            background.write(lambda number=number: write(number))
        assert background.read(lambda: "columns").result(60) == "columns"
        assert not done
        late = threading.Thread(target=lambda: background.write(lambda: write(AHEAD)))
        late.start()
        late.join(0.2)
        assert late.is_alive()
        free.set()
        late.join(60)
    assert done == list(range(AHEAD + 1))


def fail():
    raise StorageError("the disk is full")


@pytest.mark.parametrize("kind", ["read", "write"])
def test_an_error_is_raised_while_the_caller_works(kind):
    def use(background):
        getattr(background, kind)(fail)
        wait_until(background.check)  # which returns nothing, or raises

    with pytest.raises(StorageError, match="the disk is full"), Background() as background:
        use(background)


def test_after_an_error_what_still_waits_is_not_written():
    begun, done = threading.Event(), []

    def use(background):
        failed = background.read(fail)
        background.write(lambda: begun.wait(60))
        background.write(lambda: done.append("written"))
        wait_until(failed.done)
        try:
            background.check()
        finally:
            begun.set()

    with pytest.raises(StorageError), Background() as background:
        use(background)
    assert not done


@pytest.mark.parametrize("kind", ["read", "write"])
def test_an_error_in_the_last_part_is_raised_at_the_end(kind):
    def use(background):
        if kind == "read":
            found = background.read(fail)
            background.write(lambda: found.result())
        else:
            background.write(fail)

    with pytest.raises(StorageError, match="the disk is full"), Background() as background:
        use(background)


def test_what_the_writer_was_given_is_written_though_the_caller_is_interrupted():
    begun, done = threading.Event(), []

    def interrupted(background):
        background.write(lambda: begun.wait(60) and done.append(0))
        background.write(lambda: done.append(1))
        begun.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Background() as background:
        interrupted(background)
    assert done == [0, 1]
