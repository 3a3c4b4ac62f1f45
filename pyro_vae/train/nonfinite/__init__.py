"""A step that is not finite: noticed before it reaches a parameter, explained, or undone."""
