"""python -m neoxkit"""

from neoxkit.cli import main

main()
