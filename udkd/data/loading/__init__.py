"""What backends load batches with: work in threads, reusable memory, copies to a device ahead of their use.

Part of udkd.data.
"""
