"""``python -m lplr_cli`` is the same command as ``lplr``."""

from lplr_cli.cli.main import main

if __name__ == "__main__":
    main()
