"""What an evaluation shows: the results as a document and a table, and `report.html`.

results    the document in metrics.json, the terminal's table
figures    plots and thumbnails
markup     the HTML pieces
page       report.html from results and pictures
pictures   what is shown of one run: matrices, an alignment, searches
"""
