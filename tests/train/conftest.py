"""Makes ``tiny`` importable from the folders below."""
