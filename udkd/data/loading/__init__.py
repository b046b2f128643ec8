"""What backends feed a device with: work in threads, memory that is used again, copies ahead of their use.

Part of udkd.data.
"""
