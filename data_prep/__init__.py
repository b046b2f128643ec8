"""`udkd data`, the converter of image files to dataset folders. It may import udkd.utils and udkd.data."""
