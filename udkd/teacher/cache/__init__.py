"""The teacher cache: a teacher's logits for each (sample, view), exact, verified and safe against a crash.

Part of udkd.teacher. A cache is a folder with one file per view (view_file.py has the format), each with the whole key
(key.py), and a note of how many views there have been (view_count.py).
"""
