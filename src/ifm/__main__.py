"""python -m ifm"""

from ifm.cli.main import main

if __name__ == "__main__":
    main()
