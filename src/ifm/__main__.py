"""python -m ifm"""

from ifm.cli import main

if __name__ == "__main__":
    main()
