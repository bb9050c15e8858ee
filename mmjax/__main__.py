"""`python -m mmjax` is `mmjax`."""

from mmjax.cli import main

main()
