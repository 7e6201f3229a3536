"""What several tests of the package share."""

import pytest


@pytest.fixture
def command(gpt, capsys):
    """Run one command line; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        code = gpt.__main__.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
