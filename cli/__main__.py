"""`python -m adapterhub.cli`."""

from adapterhub.cli.main import main

if __name__ == "__main__":
    main()
