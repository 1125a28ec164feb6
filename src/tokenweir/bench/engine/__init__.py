"""The measuring engine: one capturing process per worker, which takes stamps and bytes and parses nothing.

``plan`` says what a worker does; ``capture`` is its loop; ``segment`` is what it leaves for the finishing pass.
"""
