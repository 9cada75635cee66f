"""The look of all pictures: colours, styles and the periodic-table heat map."""
