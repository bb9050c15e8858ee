"""Importing mmjax changes nothing that belongs to the whole process: no filter of warnings, no logger."""

import subprocess
import sys

LIST = """
import importlib, pkgutil, sys
import mmjax

names = [one.name for one in pkgutil.walk_packages(mmjax.__path__, "mmjax.") if not one.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(*(name for name in sys.modules if name.split(".")[0] not in ("mmjax", "__main__")))
print(*names)
"""
# What mmjax imports comes first, with all that it changes; the rest is of mmjax alone.
CHECK = """
import contextlib, importlib, logging, sys, warnings

others, names = (line.split() for line in sys.stdin.read().splitlines())
assert len(names) > 80, names
for name in others:
    with contextlib.suppress(Exception):
        importlib.import_module(name)
warnings.resetwarnings()
logging.captureWarnings(False)
show = warnings.showwarning

def loggers():
    return [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]

for logger in loggers():
    logger.setLevel(logging.NOTSET)
    logger.filters.clear()
    logger.handlers.clear()
disabled, maker = logging.root.manager.disable, logging.getLoggerClass()
for name in names:
    importlib.import_module(name)
    assert not warnings.filters and warnings.showwarning is show, f"{name}: {warnings.filters}"
    for logger in loggers():
        assert not (logger.filters or logger.handlers or logger.level), f"{name}: {logger}"
    assert (logging.root.manager.disable, logging.getLoggerClass()) == (disabled, maker), name
"""


def run(script, given=""):
    done = subprocess.run([sys.executable, "-c", script], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_importing_every_module_silences_nobody():
    run(CHECK, "\n".join(run(LIST).splitlines()[-2:]))
