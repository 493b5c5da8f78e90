def write_figures(comparison, files):
    pass
