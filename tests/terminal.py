"""A command as a user types it, run in this process: a subprocess imports torch for seconds."""

import contextlib
import importlib
import io
import os
import sys
from unittest.mock import patch

from hydra.core.hydra_config import HydraConfig

from utils.cli import script as cli


def terminal(script: str, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `python <script>.py <arguments>`."""
    out, err = io.StringIO(), io.StringIO()
    main = importlib.import_module(script).main
    with (
        patch.object(sys, "argv", [f"{script}.py", *arguments]),
        patch.object(sys, "path", [*sys.path]),
        patch.object(cli, "_looked_in", set()),
        patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.environ.pop("HYDRA_FULL_ERROR", None)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            HydraConfig.instance().cfg = None  # of this command, not of what follows here
    return code, out.getvalue(), err.getvalue()


def refusal(script: str, *arguments: str) -> str:
    """The one sentence with which the command ends."""
    code, _, err = terminal(script, *arguments)
    assert code == 1 and err.startswith("error: ") and len(err.strip().splitlines()) == 1, err
    return err.removeprefix("error: ").strip()
