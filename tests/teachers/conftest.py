"""What several tests of teachers need."""

import os

import pytest


class Attack:
    """Unpickles by running a command, which makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def attack():
    return Attack
