"""Run the command line with ``python -m totalvi``."""

from totalvi.cli.main import main

if __name__ == "__main__":
    main()
