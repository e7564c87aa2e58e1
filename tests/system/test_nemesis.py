"""What the coordinator does under everything at once, for as long as a test may take; `make nemesis` takes longer."""

import os

import nemesis


def test_never_two_leaders_at_once_whatever_goes_wrong(folder):
    assert nemesis.run(folder, float(os.environ.get("NEMESIS_SECONDS", "10")), seed=int(os.environ.get("NEMESIS_SEED", "1"))) == []
