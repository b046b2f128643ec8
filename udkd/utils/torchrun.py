"""`python -m udkd.utils.torchrun ARGUMENTS…`: torchrun, which ends with the process that started it."""

import signal

from udkd.utils.operating_system import die_with_parent

if __name__ == "__main__":
    die_with_parent(signal.SIGTERM)
    from torch.distributed.run import main

    main()
