"""The teacher cache: a teacher's logits for each (sample, view), exact, verified and crash-safe.

Part of udkd.teacher. A cache is a folder with one file per view (view_file.py), each of which stores the complete key
(key.py), and views.json, the number of views (view_count.py).
"""
