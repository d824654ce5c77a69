"""Walk a graph in stages: what needs data sees each layer behind rounded ones, one stage at a time.

``cut`` divides a graph at the inputs of the layers to round, ``walk`` runs the stages one after the
other on all samples, ``spool`` keeps what crosses the cuts, ``store`` keeps rounded weights.
"""
