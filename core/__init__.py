"""What every room stands on: settings, errors, labels, files, processes, ranks and figures;
imports nothing of evenfield.
"""
