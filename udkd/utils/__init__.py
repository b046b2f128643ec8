"""What every other package uses: errors, files, random numbers, signals, output. It imports nothing of udkd."""
