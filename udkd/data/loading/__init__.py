"""Building blocks of the backends: decoding threads, reusable host memory, asynchronous copies to a device.

Part of udkd.data.
"""
