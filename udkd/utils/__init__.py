"""What every other package is made of: errors, files, random numbers, signals, output. It imports nothing of udkd."""
