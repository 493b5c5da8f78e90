"""Does a score from a single training say which features will come back? PROTOCOL.md says what was written down
before.
"""
