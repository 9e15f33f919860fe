"""Reading sound of any format, to its true end."""
