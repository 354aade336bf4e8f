"""``python -m satstore`` is the command ``satstore``."""

from satstore.cli import main

if __name__ == "__main__":
    main()
