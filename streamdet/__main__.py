"""`python -m streamdet`."""

from streamdet.cli import main

if __name__ == "__main__":
    main()
