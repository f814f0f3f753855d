"""Everything that Class Impression is compared with, and our own method, behind one registry."""
