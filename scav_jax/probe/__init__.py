"""What a model's features are good for beside retrieval: `scav probe --run RUN --split test`.

labels    linear probe and nearest neighbours
tasks     the classifiers that it was trained with, beside priors and controls
changes   changed copies of clips as queries against the originals
probing   all of it, as one document and a table
"""
