"""What every other package uses: errors, files, random numbers, signals, output. It imports nothing else from udkd."""
