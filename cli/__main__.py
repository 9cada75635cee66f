from evenfield.cli import main


main()
